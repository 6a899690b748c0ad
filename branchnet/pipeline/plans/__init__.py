"""What a verb would do, with the memory and the time that each step will take: what `--dry-run` prints.

`dry_run` holds the plan and the steps that verbs have in common, `run_plan` the plan of a whole run.
"""
