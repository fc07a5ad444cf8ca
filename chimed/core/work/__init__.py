"""Long work: operations and their steps, rebuilds, migrations with their attempts, imports."""
