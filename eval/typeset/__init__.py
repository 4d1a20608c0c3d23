"""Tables of means as papers print them, from the results.json of evaluations."""
