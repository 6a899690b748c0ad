"""The whole way from trained networks to one branched network, as `branchnet run` goes it.

Reading arguments and printing belong to the command.
"""
