"""Credit applications from a structural causal model: a task whose unfairness is made to measure."""
