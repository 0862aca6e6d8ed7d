"""What people look at: pages made from a run's files, and what a verb prints."""
