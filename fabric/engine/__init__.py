"""The doing half of a device group: batches, forward passes, sampling, the step loop."""
