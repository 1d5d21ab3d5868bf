"""What runs inside the sandbox, on the standard library alone: a fresh interpreter imports nothing else of Slipstream.

That interpreter finds this folder as the package `confined`, so the imports among these files are relative.

    kernel, syscalls    take away everything but computing and one folder
    wire                values as lines of text, both ways
    candidate           the process that holds the answer's code
    judge               the process that holds the tests and asks the candidate for values
"""
