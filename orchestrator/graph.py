"""The graph: place, ask, judge, and one way back through gather for those that look again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from secondlook.agents.case import Case
from secondlook.orchestrator.nodes import Nodes, State


def compile_graph(nodes: Nodes) -> Any:
    """Wire the nodes into a LangGraph that takes a micro-batch.

    The gate splits the batch: decided cases have their verdict and stay, pending ones go round once more.
    """
    from langgraph.graph import END, START, StateGraph

    def split(state: State) -> Literal["gather", "end"]:
        return "gather" if state["pending"] else "end"

    graph = StateGraph(State)
    for name in ("place", "ask", "judge", "gather"):
        graph.add_node(name, getattr(nodes, name))
    graph.add_edge(START, "place")
    graph.add_edge("place", "ask")
    graph.add_edge("ask", "judge")
    graph.add_conditional_edges("judge", split, {"gather": "gather", "end": END})
    graph.add_edge("gather", "ask")
    return graph.compile()


def initial_state(cases: Sequence[Case]) -> State:
    """State of a batch before its first look."""
    return State(
        cases=tuple(cases),
        look=1,
        pending=tuple(range(len(cases))),
        typicality=(),
        outcomes={},
        trails={},
        verdicts={},
    )
