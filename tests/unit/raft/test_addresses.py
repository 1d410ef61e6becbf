"""The promise: managers that have moved find each other, and their operator is told the command that corrects the list.

An example: three managers start again on three new ports, after a change of their configuration. The replicated list
has the old ports, and only a leader can change the list. (Pins a fault: they dialled the old ports for ever.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from tests.engine_harness import Cluster
from warren_raft.config import MEMBERS_MAX
from warren_raft.raft.address_book import (
    PLACES_MAX,
    TOLD_MAX,
    AddressBook,
    Said,
    are_told,
)
from warren_raft.raft.changes import DONE, REFUSED, Answer
from warren_raft.raft.events import Refused
from warren_raft.raft.membership import (
    TEXT_CHARACTERS,
    UPDATE,
    Member,
)
from warren_raft.raft.messages import Addresses
from warren_raft.raft.refusal import WRONG_NODE, Refusal


def moved(cluster: Cluster, id_: str) -> str:
    """The manager's next address."""
    port = int(cluster.addresses[id_].rpartition(":")[2])
    return f"127.0.0.1:{port + 100}"


def move(cluster: Cluster, id_: str, members: Mapping[str, str] | None = None) -> None:
    """Stop a manager, and start it with another address. It knows only its own new address, unless `members` has
    others."""
    address = moved(cluster, id_)
    cluster.crash(id_)
    cluster.start(id_, address=address, members={**cluster.initial, **(members or {}), id_: address})


def alarms(cluster: Cluster, id_: str) -> list[str]:
    active = cluster.nodes[id_].engine.alarms.active
    return sorted(alarm.text for alarm in active if alarm.name == "address-differs")


def test_managers_that_all_come_back_elsewhere_find_each_other_by_the_list_that_they_are_started_with() -> None:
    cluster = Cluster()
    cluster.wait_ready()
    cluster.write("m1", "before")
    for id_ in ("m1", "m2", "m3"):
        cluster.crash(id_)
    new = {id_: moved(cluster, id_) for id_ in cluster.addresses}
    for id_, address in new.items():
        cluster.start(id_, members=new, address=address)
    cluster.wait_ready()
    cluster.write("m2", "after")
    cluster.check_writes()
    old = cluster.initial
    for id_ in new:
        assert alarms(cluster, id_) == sorted(
            f"{each} {'listens on' if each == id_ else 'says that its address is'} {new[each]}, but the member list "
            f"has {old[each]} for it; if {new[each]} is a mistake, start {each} with {old[each]}; "
            f"if not, type: warren-raft members update {each}={new[each]}"
            for each in new
        )


def test_the_alarm_ends_when_its_command_was_typed() -> None:
    cluster = Cluster()
    cluster.wait_ready()
    move(cluster, "m3")
    cluster.wait_ready()
    assert cluster.run_until(lambda: all(len(alarms(cluster, id_)) == 1 for id_ in cluster.nodes))
    answer = cluster.change("m2", UPDATE, "m3", cluster.addresses["m3"])
    assert (answer.state, answer.text) == (DONE, "")
    cluster.run_until(lambda: not any(alarms(cluster, id_) for id_ in cluster.nodes))


def test_a_manager_whose_own_address_is_not_the_list_s_says_so_before_it_has_met_anybody() -> None:
    cluster = Cluster()
    cluster.wait_ready()
    for id_ in ("m1", "m2", "m3"):
        cluster.crash(id_)
    cluster.start("m2", address=moved(cluster, "m2"))
    cluster.run(0.1)
    address = cluster.addresses["m2"]
    (alarm,) = alarms(cluster, "m2")
    assert alarm.startswith(f"m2 listens on {address}, ")
    assert alarm.endswith(f"type: warren-raft members update m2={address}")


def test_two_that_moved_one_after_the_other_find_each_other_when_the_third_dies() -> None:
    """Each of the two told its new address, in its hello, to the members that it reached. m3 met both of them, and they
    never met each other. When m3 died, a majority was alive, and its members could not find each other."""
    cluster = Cluster()
    cluster.wait_ready()
    move(cluster, "m1")
    cluster.wait_ready()
    move(cluster, "m2")
    cluster.run_until(lambda: {("m3", "m1"), ("m3", "m2")} <= cluster.links.keys())
    cluster.run_until(lambda: ("m1", "m2") in cluster.links)
    cluster.crash("m3")
    cluster.disconnect("m1", "m2")
    cluster.run_until(lambda: cluster.leader is not None and ("m1", "m2") in cluster.links)
    cluster.write("m1", "two of three")


def test_who_moved_is_told_to_a_member_that_comes_later() -> None:
    cluster = Cluster()
    cluster.wait_ready()
    cluster.crash("m1")
    move(cluster, "m2")
    cluster.run_until(lambda: ("m3", "m2") in cluster.links)
    cluster.part("m1", "m2")
    cluster.start("m1")
    cluster.run_until(lambda: cluster.addresses["m2"] in cluster.nodes["m1"].dialed.get("m2", ()))
    cluster.heal()
    cluster.run_until(lambda: ("m1", "m2") in cluster.links)


def test_addresses_that_are_told_make_nobody_a_member_and_hold_only_for_the_directory_they_were_told_of() -> None:
    cluster = Cluster()
    cluster.wait_ready()
    m1 = cluster.nodes["m1"]
    assert m1.engine.membership is not None
    before = m1.engine.membership.members
    incarnation = before["m2"].incarnation
    strange = [
        ("m9", incarnation, "127.0.0.1:9009"),
        ("m2", "of another directory", "127.0.0.1:9010"),
        ("m2", incarnation, "0.0.0.0:9011"),
        ("m2", incarnation, "no address"),
    ]
    m1.engine._dialling.on_addresses("m3", Addresses(strange))
    cluster.run(0.1)
    assert m1.dialed.keys() == {"m2", "m3"}
    assert m1.dialed["m2"] == (cluster.addresses["m2"],)
    m1.engine._dialling.on_addresses("m3", Addresses([("m2", incarnation, "127.0.0.1:9012")]))
    cluster.run(0.1)
    assert m1.dialed["m2"] == (cluster.addresses["m2"], "127.0.0.1:9012")
    assert m1.engine.membership.members == before
    assert not alarms(cluster, "m1")


def test_a_blank_directory_at_an_address_that_was_said_is_not_let_in() -> None:
    """The address is only a place to dial. The manager that answers there is judged like any other."""
    cluster = Cluster()
    cluster.wait_ready()
    move(cluster, "m3")
    cluster.wait_ready()
    cluster.crash("m3")
    cluster.wipe("m3")
    cluster.start("m3")
    cluster.run(5)
    assert ("m1", "m3") not in cluster.links
    assert any("is not the one the cluster knows" in refusal.text for _, _, refusal in cluster.refusals)


def test_a_removed_member_is_forgotten_with_its_addresses() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready().id
    gone = next(id_ for id_ in cluster.followers())
    move(cluster, gone)
    cluster.wait_ready()
    cluster.change(leader, "remove", gone)
    cluster.run_until(lambda: gone not in cluster.nodes)
    cluster.run(1)
    stay = next(id_ for id_ in cluster.nodes if id_ != leader)
    for id_ in (leader, stay):
        assert not alarms(cluster, id_)
        assert gone not in cluster.nodes[id_].dialed


def test_members_update_says_where_nobody_answers_and_where_the_member_is() -> None:
    """(Pins a fault: the answer was "done" for any address, and managers that had to dial the member lost it.)"""
    cluster = Cluster()
    leader = cluster.wait_ready().id
    follower = cluster.followers()[0]
    nowhere = "127.0.0.1:9999"
    answer = cluster.change(leader, UPDATE, follower, nowhere)
    address = cluster.addresses[follower]
    assert answer.state == DONE
    assert answer.text == (
        f"{follower} says that its address is {address}: start {follower} with --listen {nowhere}, or type: "
        f"warren-raft members update {follower}={address}"
    )
    cluster.crash(follower)
    cluster.run_until(lambda: (leader, follower) not in cluster.links)
    answer = cluster.change(leader, UPDATE, follower, "127.0.0.1:9998")
    assert answer.text == (
        f"{follower} does not answer at 127.0.0.1:9998: start {follower} with --listen 127.0.0.1:9998, or correct the "
        f"address: warren-raft members update {follower}=HOST:PORT"
    )
    cluster.start(follower, address="127.0.0.1:9998")
    cluster.wait_ready()
    assert cluster.change(leader, UPDATE, follower, "127.0.0.1:9998").text == ""
    cluster.run_until(lambda: not any(alarms(cluster, id_) for id_ in cluster.nodes))


def test_only_one_member_at_a_time_is_where_the_list_does_not_have_it() -> None:
    """Two operators change the list first, and the two managers of a cluster die before either has moved. (Pins a
    fault: the list had two addresses at which nobody listened. The managers dialled them for ever.)"""
    cluster = Cluster(("m1", "m2"))
    leader = cluster.wait_ready().id
    (follower,) = cluster.followers()
    ahead = {leader: "127.0.0.1:9998", follower: "127.0.0.1:9999"}
    assert cluster.change(leader, UPDATE, leader, ahead[leader]).state == DONE
    refused = cluster.change(leader, UPDATE, follower, ahead[follower])
    address = cluster.addresses[leader]
    assert refused == Answer(
        REFUSED,
        f"{leader} listens on {address}, but the member list has {ahead[leader]} for it, and two members at other "
        f"addresses than in the list may not find each other: start {leader} with --listen {ahead[leader]}, or type: "
        f"warren-raft members update {leader}={address}; then change {follower}",
    )
    for id_ in (leader, follower):
        cluster.crash(id_)
    for id_ in (leader, follower):
        cluster.start(id_)
    leader = cluster.wait_ready().id
    move(cluster, follower)
    leader = cluster.wait_ready().id
    assert cluster.change(leader, UPDATE, follower, cluster.addresses[follower]).state == DONE, "it is there already"


def test_two_managers_that_took_each_other_s_address_are_put_in_order() -> None:
    """Each address is in the list under the id of the other manager. (Pins a fault: the update was refused for both,
    because the address was taken.)"""
    cluster = Cluster()
    cluster.wait_ready()
    for id_ in ("m1", "m2", "m3"):
        cluster.crash(id_)
    old = cluster.initial
    new = {"m1": old["m2"], "m2": old["m1"], "m3": old["m3"]}
    for id_, address in new.items():
        cluster.start(id_, members=new, address=address)
    leader = cluster.wait_ready().id
    assert cluster.change(leader, UPDATE, "m3", old["m1"]).text == f"{old['m1']} is the address of m2"
    for id_ in ("m1", "m2"):
        assert cluster.change(leader, UPDATE, id_, new[id_]).state == DONE
    cluster.run_until(lambda: not any(alarms(cluster, id_) for id_ in cluster.nodes))


def test_what_was_learnt_before_a_restart_is_of_use_after_it() -> None:
    """The two managers that have moved are restarted after the third, which knew both, is lost for ever."""
    cluster = Cluster()
    cluster.wait_ready()
    move(cluster, "m1")
    move(cluster, "m2")
    cluster.run_until(lambda: ("m1", "m2") in cluster.links)
    kept = {id_: cluster.nodes[id_].engine.addresses_to_keep({}) for id_ in ("m1", "m2")}
    assert kept == {"m1": {"m2": cluster.addresses["m2"]}, "m2": {"m1": cluster.addresses["m1"]}}
    for id_ in ("m1", "m2", "m3"):
        cluster.crash(id_)
    for id_ in ("m1", "m2"):
        cluster.start(id_, hints={other: (address,) for other, address in kept[id_].items()})
    cluster.write("m1", "two of three")
    cluster.crash("m1")
    assert cluster.nodes["m2"].engine.addresses_to_keep(kept["m2"]) == kept["m2"]


def test_managers_that_were_restored_with_old_addresses_form_their_cluster_at_the_new_ones() -> None:
    """The list with which they were restored is in force, and no manager is at its addresses any more."""
    cluster = Cluster(start=False)
    for id_ in cluster.initial:
        cluster.restore(id_, ["old"])
    new = {id_: moved(cluster, id_) for id_ in cluster.initial}
    for id_, address in new.items():
        cluster.start(id_, members=new, address=address)
    leader = cluster.wait_ready().id
    for id_, address in new.items():
        assert cluster.change(leader, UPDATE, id_, address).state == DONE
    cluster.run_until(lambda: not any(alarms(cluster, id_) for id_ in new))


def test_a_manager_that_is_dialled_in_search_of_another_raises_no_alarm_about_it() -> None:
    """The port belonged to another member once. The manager that dialled it has the wrong address, and logs that."""
    cluster = Cluster()
    cluster.wait_ready()
    m3 = cluster.nodes["m3"]
    m3.events.append(Refused("m1", Refusal(WRONG_NODE, "the manager at 127.0.0.1:7001 is m3, not m2")))
    cluster.run(0.1)
    assert m3.alarm_names == []
    m3.events.append(Refused("m1", Refusal("unknown-directory", "the data directory of m3 is not the one")))
    cluster.run(0.1)
    assert m3.alarm_names == ["refused-by-member"]


# The book ------------------------------------------------------------------------------------------------------------

M2 = Member("m2", "127.0.0.1:2", "directory", voter=True)


def test_what_a_member_said_itself_is_dialled_first_and_every_address_once() -> None:
    book = AddressBook("127.0.0.1:1", {"m2": ("127.0.0.1:5", "127.0.0.1:2")})
    assert book.places(M2) == ("127.0.0.1:2", "127.0.0.1:5")
    book.told("m3", [("m2", Said("directory", "127.0.0.1:4"))], {"m2": M2})
    book.heard(M2, "directory", "127.0.0.1:3")
    assert book.places(M2) == ("127.0.0.1:3", "127.0.0.1:2", "127.0.0.1:4", "127.0.0.1:5")
    book.heard(M2, "another directory", "127.0.0.1:6")
    assert book.differing([M2]) == {"m2": "127.0.0.1:3"}


def test_an_address_that_is_our_own_by_now_is_not_dialled() -> None:
    """m1 took over a port that m2 has left. It would dial itself there, and raise an alarm."""
    assert AddressBook("127.0.0.1:2", {"m2": ("127.0.0.1:5",)}).places(M2) == ("127.0.0.1:5",)
    assert AddressBook("127.0.0.1:2", {}).places(M2) == ("127.0.0.1:2",)


def test_a_new_entry_of_the_list_comes_before_what_was_said_before_it() -> None:
    """The member may not have moved there yet, so its earlier address is dialled, too, until it says an address."""
    book = AddressBook("127.0.0.1:1", {})
    book.heard(M2, "directory", "127.0.0.1:3")
    newer = Member("m2", "127.0.0.1:4", "directory", voter=True)
    book.members_changed({"m2": M2}, {"m2": newer})
    assert book.differing([newer]) == {}
    assert book.places(newer) == ("127.0.0.1:4", "127.0.0.1:3")
    assert book.to_keep({}, {"m2": newer}) == {"m2": "127.0.0.1:3"}
    newest = Member("m2", "127.0.0.1:5", "directory", voter=True)
    book.members_changed({"m2": newer}, {"m2": newest})
    assert book.places(newest) == ("127.0.0.1:5", "127.0.0.1:4"), "one earlier address"
    book.heard(newest, "directory", newest.address)
    assert book.places(newest) == ("127.0.0.1:5",)


class _Comparing(str):
    """An incarnation that calls `during` when it is first compared: in the middle of another thread's reading."""

    during: Callable[[], None] | None = None

    def __eq__(self, other: object) -> bool:
        during, self.during = self.during, None
        if during is not None:
            during()
        return str(self) == other

    __hash__ = str.__hash__


@pytest.mark.parametrize("news", ["the member says its address", "another member tells one"])
def test_the_addresses_to_keep_are_read_while_the_raft_thread_changes_them(news: str) -> None:
    """(Pins a bug: a dictionary changed while the thread of the housekeeping walked through it.)"""
    incarnation = _Comparing("directory")
    member = Member("m2", "127.0.0.1:4", incarnation, voter=True)
    members = {"m2": member, "m3": Member("m3", "127.0.0.1:3", "third", voter=True)}
    book = AddressBook("127.0.0.1:1", {})
    book.members_changed({"m2": M2}, {**members, "m2": member})
    book.told("m3", [("m2", Said("directory", "127.0.0.1:8"))], members)

    def change() -> None:
        if news == "another member tells one":
            book.told("m3", [("m2", Said("directory", "127.0.0.1:9"))], members)
        else:
            book.heard(member, "directory", member.address)

    incarnation.during = change
    assert book.to_keep({}, {"m2": member}) == {"m2": "127.0.0.1:8"}


def test_however_much_is_told_a_few_addresses_of_each_member_are_kept() -> None:
    book = AddressBook("127.0.0.1:1", {"m2": [f"127.0.0.1:{port}" for port in range(100, 120)]})
    for port in range(1000, 2000):
        told = [("m2", Said("directory", f"127.0.0.1:{port}")), ("m3", Said("x", "127.0.0.1:3"))]
        book.told(f"m{port % 7}", told, {"m2": M2})
    places = book.places(M2)
    assert len(places) == PLACES_MAX
    assert places[: 1 + TOLD_MAX] == ("127.0.0.1:2", "127.0.0.1:1999", "127.0.0.1:1998", "127.0.0.1:1997")
    assert {id_: len(told) for id_, told in book._told.items()} == {"m2": 7}, "one address of each member that tells"


def test_what_is_worth_keeping_is_where_members_are_and_the_list_does_not_have_them() -> None:
    members = {"m1": Member("m1", "127.0.0.1:1", "own", voter=True), "m2": M2}
    book = AddressBook("127.0.0.1:1", {})
    assert book.to_keep({}, members) == {}
    before = {"m2": "127.0.0.1:3", "m9": "127.0.0.1:9"}
    assert book.to_keep(before, members) == {"m2": "127.0.0.1:3"}, "m2 was not heard since, and m9 is not a member"
    assert book.to_keep({"m2": M2.address}, members) == {}, "the list has the address by now"
    book.told("m3", [("m2", Said("directory", "127.0.0.1:4"))], members)
    assert book.to_keep(before, members) == {"m2": "127.0.0.1:4"}
    book.heard(M2, "directory", M2.address)
    assert book.to_keep(before, members) == {}, "the member itself says that the list is right"


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        [["m2", "directory"]],
        [["m2", "directory", 7]],
        [["m2", "directory", ""]],
        [["m2", "directory", "a" * (TEXT_CHARACTERS + 1)]],
        [["m2", "directory", "127.0.0.1:1"]] * (MEMBERS_MAX + 1),
    ],
)
def test_what_is_no_list_of_addresses_is_found_out_before_it_is_read(value: object) -> None:
    assert not are_told(value)
    assert are_told([["m2", "directory", "127.0.0.1:1"]])
