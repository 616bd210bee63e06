"""Batch jobs: thousands of operations from a file, worked through in the background.

file       the operations, as they were taken
agent      a job as a run: starts a child for each operation, and logs what it came to
tally      how far a job has got
slots      what all jobs may do at the same time, shared fairly
pace       so many a second
notice     tells a webhook how a job has ended
service    jobs on behalf of a principal
"""
