"""Everything about learning: data, loss, optimizer, the one step, the one loop, checkpoints, metrics."""
