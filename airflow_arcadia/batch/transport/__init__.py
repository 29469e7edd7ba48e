"""Send rows to servers: HTTP, bundles of rows, and the detection of hung engines."""
