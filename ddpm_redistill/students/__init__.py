"""From a teacher to its student: the plan as data, then the network."""
