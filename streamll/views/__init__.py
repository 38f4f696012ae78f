"""What a person looks at: pure folds and lines of events."""
