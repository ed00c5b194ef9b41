"""Losses and the numbers that watch them: pure functions of tensors. Every loss here is to be minimised.

A loss is a sum over tokens divided by `num_tokens`, the count over the *whole optimizer step* (all ranks, all
micro-batches), so that the parts add up to the loss of the global batch. So are the diagnostics beside it.
"""
