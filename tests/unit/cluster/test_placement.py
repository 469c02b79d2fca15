"""Where ranks lie: every group whole, nothing given twice, and a missing resource named."""

from hypothesis import given
from hypothesis import strategies as st

from baleen.cluster_config import ClusterConfig, PoolConfig, RouterConfig
from cluster.placement import GIB, Node, Resources, Taken, bundles, plan, pools_and_router, rank_need, rank_order


def node(name: str, cpus: float, gpus: float = 0, gib: float = 64) -> Node:
    return Node(name, f"address of {name}", Resources(cpus, gpus, gib * GIB))


def pool(ep: int, **fields) -> PoolConfig:
    return PoolConfig(**{"name": "decode", "role": "decode", "cpus_per_rank": 1.0, **fields}, ep=ep)


def test_a_group_is_packed_on_few_nodes():
    placed = plan([pool(4)], [node("a", 1), node("b", 4), node("c", 2)]).placed
    assert [[place.node_id for place in group.nodes] for group in placed] == [["b"] * 4]


def test_a_group_that_spreads_takes_nodes_in_turn():
    placed = plan([pool(4, strategy="spread")], [node("a", 8), node("b", 8)]).placed
    assert [place.node_id for place in placed[0].nodes] == ["a", "a", "b", "b"]


def test_a_strictly_packed_group_takes_the_smallest_hole_that_holds_it():
    nodes = [node("a", 8), node("b", 4), node("c", 3)]
    placed = plan([pool(4, strategy="strict_pack")], nodes).placed
    assert {place.node_id for place in placed[0].nodes} == {"b"}


def test_a_strictly_packed_group_is_not_split():
    result = plan([pool(4, strategy="strict_pack")], [node("a", 3), node("b", 3)])
    assert result.placed == ()
    assert result.unplaced[0].reason == (
        "no node has room for all 4 ranks; the nearest, address of a, lacks CPU: needs 4, free 3"
    )


def test_a_strict_spread_needs_a_node_for_each_rank():
    result = plan([pool(3, strategy="strict_spread")], [node("a", 8), node("b", 8)])
    assert "a node with room for each of 3 ranks, there are 2" in result.unplaced[0].reason


def test_the_missing_resource_is_named():
    result = plan([pool(2, gpus_per_rank=1)], [node("a", 8), node("b", 8)])
    assert result.unplaced[0].reason == (
        "no node has room for a rank; the nearest, address of a, lacks GPU: needs 1, free 0"
    )
    result = plan([pool(2, memory_gib_per_rank=100.0)], [node("a", 8)])
    assert "memory: needs 100.00 GiB, free 64.00 GiB" in result.unplaced[0].reason
    result = plan([pool(4)], [node("a", 2), node("b", 1)])
    assert result.unplaced[0].reason == "the cluster has room for 3 of 4 ranks; CPU: needs 4, free 3"
    assert plan([pool(1)], []).unplaced[0].reason == "there is no node"


def test_a_group_that_does_not_fit_takes_nothing_from_the_others():
    large, small = pool(8, name="large"), pool(2, name="small")
    result = plan([large, small], [node("a", 4)])
    assert [group.pool for group in result.unplaced] == ["large"]
    assert [group.pool for group in result.placed] == ["small"]


def test_shares_of_a_processor_add_up():
    # ten times 0.1 is a little less than 1 in binary
    assert plan([pool(10, cpus_per_rank=0.1)], [node("a", 1)]).unplaced == ()
    assert plan([pool(11, cpus_per_rank=0.1)], [node("a", 1)]).unplaced != ()


def test_bundles_hold_what_a_rank_needs_and_nothing_that_is_none():
    assert bundles(pool(2)) == [{"CPU": 1.0}, {"CPU": 1.0}]
    wanted = {"CPU": 1.0, "GPU": 2, "memory": 3.0 * GIB}
    assert bundles(pool(1, gpus_per_rank=2, memory_gib_per_rank=3.0)) == [wanted]


def test_the_router_needs_a_place_too():
    config = ClusterConfig(pools=(pool(2),), router=RouterConfig(cpus=0.5, replicas=2))
    assert plan(pools_and_router(config), [node("a", 2)]).unplaced[0].pool == "router"
    assert plan(pools_and_router(config), [node("a", 3)]).unplaced == ()


def test_what_is_bound_to_an_address_is_placed_there_first_or_not_at_all():
    config = ClusterConfig(pools=(pool(1),), router=RouterConfig(cpus=1))
    nodes = [node("a", 1), node("b", 1)]
    for place, other in (("a", "b"), ("b", "a")):
        result = plan(pools_and_router(config), nodes, addresses={"router": f"address of {place}"})
        assert {group.pool: group.nodes[0].node_id for group in result.placed} == {"router": place, "decode": other}
    [lacking] = plan(
        pools_and_router(config), [node("a", 0.5), node("b", 9)], addresses={"router": "address of a"}
    ).unplaced
    assert lacking.pool == "router" and "address of a, lacks CPU: needs 1, free 0.5" in lacking.reason


def test_ranks_follow_nodes_then_bundles():
    assert rank_order(["b", "a", "b", "a"]) == [1, 3, 0, 2]


@given(
    sizes=st.lists(
        st.tuples(
            st.integers(1, 5),
            st.integers(1, 3),
            st.sampled_from(["pack", "strict_pack", "spread", "strict_spread"]),
            st.sampled_from([0.5, 1.0, 2.0]),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=4,
    ),
    rooms=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), max_size=5),
)
def test_no_node_gives_more_than_it_has_and_every_group_has_one_answer(sizes, rooms):
    pools = [
        pool(ep, name=f"p{number}", groups=groups, strategy=strategy, cpus_per_rank=cpus, gpus_per_rank=gpus)
        for number, (ep, groups, strategy, cpus, gpus) in enumerate(sizes)
    ]
    nodes = [node(f"n{number}", cpus, gpus) for number, (cpus, gpus) in enumerate(rooms)]
    result = plan(pools, nodes)
    by_name = {one.name: one for one in pools}
    answers = [(group.pool, group.group) for group in (*result.placed, *result.unplaced)]
    assert sorted(answers) == sorted((one.name, number) for one in pools for number in range(one.groups))
    left = {one.node_id: one.free for one in nodes}
    for group in result.placed:
        asked = by_name[group.pool]
        names = [place.node_id for place in group.nodes]
        assert len(names) == asked.ep and names == sorted(names)
        assert asked.strategy != "strict_pack" or len(set(names)) == 1
        assert asked.strategy != "strict_spread" or len(set(names)) == asked.ep
        for name in names:
            left[name] = left[name].minus(rank_need(asked))
    assert all(free.cpus > -1e-6 and free.gpus >= 0 for free in left.values())
    assert all(group.reason for group in result.unplaced)


def test_who_has_what_is_missing_is_named():
    taken = (
        Taken("west.decode", Resources(0.4, 0, 0)),
        Taken("west.decode", Resources(0.4, 0, 0)),
        Taken("others", Resources(0.2, 2, 3 * GIB)),
    )
    full = Node("n", "10.0.0.1", Resources(1.0, 0, 0), taken)
    [unplaced] = plan([PoolConfig(name="p", role="mixed", cpus_per_rank=2, gpus_per_rank=1)], [full]).unplaced
    assert unplaced.reason == (
        "no node has room for a rank; the nearest, 10.0.0.1, lacks CPU: needs 2, free 1 (west.decode has 0.8, others "
        "has 0.2); GPU: needs 1, free 0 (others has 2)"
    )


def test_what_the_cluster_itself_takes_is_named_too():
    full = Node("n", "10.0.0.1", Resources(3.0, 0, 0), tuple(Taken(f"w{n}", Resources(n, 0, 0)) for n in range(1, 8)))
    pools = [PoolConfig(name=name, role="mixed", cpus_per_rank=2) for name in ("a", "b")]
    [unplaced] = plan(pools, [full]).unplaced
    assert "CPU: needs 2, free 1 (w7 has 7, w6 has 6, w5 has 5, w4 has 4 and 4 more)" in unplaced.reason
    [small] = plan(pools, [Node("n", "10.0.0.1", Resources(3.0, 0, 0))]).unplaced
    assert "free 1 (pool a of this cluster has 2)" in small.reason or "(pool b of this cluster has 2)" in small.reason
