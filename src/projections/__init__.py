"""What a reader may know: one read model per module, a pure fold over the log and the queries on its table."""
