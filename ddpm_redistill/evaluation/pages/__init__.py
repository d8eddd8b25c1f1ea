"""The report: a page of one evaluation, and a page that lays several beside each other."""
