"""Send rows to servers: HTTP, bundles of rows, lists of prompts, and the detection of hung engines."""
