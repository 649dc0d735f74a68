"""Programs that measure; they are never timed tests."""
