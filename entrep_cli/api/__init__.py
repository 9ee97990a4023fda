"""The Python API: one verb a file, named as its command, with the command's options as keywords.

Each function returns a `Result` and prints nothing; `entrep_cli.evaluate(...)` and the others load it on first use.
"""
