"""What every training loop needs and no student must read: the loop itself, checks, checkpoints,
bfloat16 and micro-batches, more than one process, and the memory ledger.

The trainers import it; it knows no trainer, no world and no command.
"""
