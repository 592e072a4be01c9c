"""Who decides: fusion, trust, gate, verdict, and the graph that connects them."""
