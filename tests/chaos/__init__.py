"""Real faults: processes are killed, stopped and forked, places fill up, servers go away.

Nothing is simulated that can be had. What is left afterwards is counted by :mod:`.census`, in the
places of :mod:`.places`; programs that are to suffer are started by :mod:`.programs`.
"""
