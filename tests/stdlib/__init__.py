"""CPython's own tests of ``concurrent.futures``, run against our executors.

``python -m tests.stdlib.run --help`` says how. No module here is named ``test_*``, so the usual
run of pytest leaves them alone: they need an interpreter that comes with its tests, take
minutes, and patch what they run.
"""
