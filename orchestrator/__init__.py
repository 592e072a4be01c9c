"""Who decides: fusion, trust, the gate, the graph, and the verdict with its trail."""
