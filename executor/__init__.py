"""Running plans: ranks, transfers, aggregation, verification."""
