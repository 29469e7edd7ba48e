"""The demo: a real model, a real run, and what was seen while it went on."""
