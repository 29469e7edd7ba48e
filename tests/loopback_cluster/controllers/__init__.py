"""Stand-ins for operators that a cluster would have: they act on the real custom resources, by the API alone.

They run against any cluster that does not have the real operator.
"""
