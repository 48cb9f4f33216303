"""The tests of projects that use ``concurrent.futures``, run with our pools in its place.

``python -m tests.users.run --help`` says how. No module here is named ``test_*``, so the usual
run of pytest leaves them alone: they need other projects, their sources, and minutes.
"""
