"""The checker of histories: what can be wrong is planted in clean ones, and must be found."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import TypeAlias

import pytest

from tests.chaos.history import Ack, Connection, History, Kind, Send, Stored, check

ROOMS = ["blue", "green"]
SEEDS = range(20)


class Client:
    """Whoever is in a room; `live` is its connection."""

    def __init__(self, name: str, room: str) -> None:
        self.name = name
        self.room = room
        self.live: Connection | None = None
        self.position: int | None = 0
        self.unstored: list[Send] = []
        self.stream = 0
        self.sequence = 0


class World:
    """A server without faults, clients, and what they saw: sends, crashes, cuts and returns at random."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.history = History(rooms={room: [] for room in ROOMS})
        self.clients = [Client(f"client-{number}", ROOMS[number % 2]) for number in range(6)]
        self.now = 0.0

    def run(self, steps: int = 400) -> History:
        """Goes on for a while, until all have all."""
        acts = [self.send, self.send, self.store, self.store, self.deliver, self.deliver, self.deliver, self.cut]
        for _ in range(steps):
            if self.random.random() < 0.02:
                for client in self.clients:
                    self.cut(client)
            self.random.choice(acts)(self.random.choice(self.clients))
        for client in self.clients:
            self.store(client)
        for client in self.clients:
            while not (client.live and self.level(client)):
                self.deliver(client)
            client.live.to_end = True
        return self.history

    def tick(self) -> float:
        self.now += self.random.random() + 0.01
        return self.now

    def send(self, client: Client) -> None:
        client.sequence += 1
        identity = f"{client.name}/{client.sequence}"
        body = f"{identity} {self.random.choice(['', 'hi', 'grüß dich', ' '])}"
        key = identity if client.name.endswith(("4", "5")) else None
        send = Send(identity, client.name, client.room, body, client.stream, client.sequence, self.tick(), key)
        self.history.sends.append(send)
        client.unstored.append(send)

    def store(self, client: Client) -> None:
        if not client.unstored:
            return
        send = client.unstored.pop(0)
        if send.key is None and self.random.random() < 0.05:
            self.history.refused.append(send.id)
            return
        log = self.history.rooms[client.room]
        log.append(Stored(len(log) + 1, send.client, send.body, send.key))
        if send.key or self.random.random() < 0.1:  # otherwise with the own copy
            self.history.acks.append(Ack(send.id, len(log), self.tick()))

    def deliver(self, client: Client) -> None:
        if client.live is None:
            self.connect(client)
        elif not self.level(client):
            self.tell(client, client.live)

    def level(self, client: Client) -> bool:
        return client.position == len(self.history.rooms[client.room])

    def tell(self, client: Client, live: Connection) -> None:
        assert client.position is not None
        stored = self.history.rooms[client.room][client.position]
        client.position += 1
        live.bodies.append(stored.body)
        if stored.user == client.name and stored.key is None:
            offset = None if live.after is None else client.position
            self.history.acks.append(Ack(stored.body.split(" ")[0], offset, self.tick()))

    def connect(self, client: Client) -> None:
        top = len(self.history.rooms[client.room])
        live = client.live = Connection(client.name, client.room, self.tick())
        if client.position is not None and self.random.random() < 0.7:
            live.after = client.position
        else:
            live.last = self.random.choice([0, 0, 3])
            client.position = max(0, top - live.last)
        while not self.level(client):
            self.tell(client, live)
        live.joined = self.tick()
        self.history.connections.append(live)

    def cut(self, client: Client) -> None:
        if client.live and client.live.after is None and not client.live.bodies:
            client.position = None  # it was never told where it is
        client.live = None
        client.stream += 1
        if client.unstored and client.unstored[0].key is None:
            client.unstored = client.unstored[: self.random.randrange(2)]


def clean(random: Random) -> History:
    return World(random).run()


def test_clean_histories_are_clean() -> None:
    assert {seed: found for seed in range(100) if (found := check(clean(Random(seed))))} == {}


def test_clean_histories_have_what_could_be_taken_for_a_fault() -> None:
    histories = [clean(Random(seed)) for seed in SEEDS]
    connections = [connection for history in histories for connection in history.connections]
    assert all(history.acks and lost(history) for history in histories)
    assert any(history.refused for history in histories)
    assert any(connection.after and connection.bodies for connection in connections)
    assert any(connection.last and connection.bodies for connection in connections)
    assert any(connection.after is None and not connection.last for connection in connections)


# --- faults ----------------------------------------------------------------------------------------------------------


def lost(history: History) -> list[Send]:
    stored = {stored.body for log in history.rooms.values() for stored in log}
    return [send for send in history.sends if send.body not in stored]


def some(random: Random, history: History, least: int = 1) -> Connection:
    """A connection that received at least so many."""
    return random.choice([connection for connection in history.connections if len(connection.bodies) >= least])


def last(random: Random, history: History, least: int = 0) -> Connection:
    """A connection that was open at the end."""
    connections = [connection for connection in history.connections if connection.to_end]
    return random.choice([connection for connection in connections if len(connection.bodies) >= least])


def add(history: History, room: str, body: str, user: str) -> None:
    """The server stores a message, and tells everybody who is there."""
    history.rooms[room].append(Stored(len(history.rooms[room]) + 1, user, body))
    for connection in history.connections:
        if connection.to_end and connection.room == room:
            connection.bodies.append(body)


def exchange(history: History, first: Send, second: Send) -> None:
    """The server stores them, and tells all of them, in each other's place."""
    other = {first.body: second, second.body: first}
    for room, log in history.rooms.items():
        history.rooms[room] = [
            Stored(stored.offset, other[stored.body].client, other[stored.body].body, other[stored.body].key)
            if stored.body in other
            else stored
            for stored in log
        ]
    for connection in history.connections:
        connection.bodies = [other[body].body if body in other else body for body in connection.bodies]
    history.acks = [ack for ack in history.acks if ack.id not in (first.id, second.id)]


def lose_one_in_the_middle(random: Random, history: History) -> None:
    bodies = some(random, history, 3).bodies
    del bodies[random.randrange(1, len(bodies) - 1)]


def lose_the_first_after_a_return(random: Random, history: History) -> None:
    resumed = [one for one in history.connections if one.after is not None and len(one.bodies) > 1]
    del random.choice(resumed).bodies[0]


def lose_all_after_a_return(random: Random, history: History) -> None:
    history.connections.append(replace(last(random, history), opened=1e6, after=1, joined=2e6, bodies=[], to_end=False))


def lose_the_tail(random: Random, history: History) -> None:
    bodies = last(random, history, 1).bodies
    del bodies[-random.randint(1, len(bodies)) :]


def never_tell_a_newcomer(random: Random, history: History) -> None:
    newcomer = last(random, history)
    joined = newcomer.opened + 0.001
    history.connections.append(replace(newcomer, after=None, last=0, joined=joined, bodies=[]))
    add(history, newcomer.room, send_more(history, newcomer.room, joined + 1).body, "client-0")
    history.connections[-1].bodies = []


def send_more(history: History, room: str, at: float) -> Send:
    send = Send("client-0/9999", "client-0", room, "client-0/9999 more", 9999, 9999, at)
    history.sends.append(send)
    return send


def double_a_receipt(random: Random, history: History) -> None:
    bodies = some(random, history).bodies
    place = random.randrange(len(bodies))
    bodies.insert(random.randint(place, len(bodies)), bodies[place])


def double_in_the_history(random: Random, history: History) -> None:
    room = random.choice(ROOMS)
    stored = random.choice(history.rooms[room])
    add(history, room, stored.body, stored.user)


def swap_receipts(random: Random, history: History) -> None:
    bodies = some(random, history, 2).bodies
    place = random.randrange(len(bodies) - 1)
    bodies[place : place + 2] = reversed(bodies[place : place + 2])


def receive_a_phantom(random: Random, history: History) -> None:
    bodies = some(random, history).bodies
    bodies.insert(random.randint(0, len(bodies)), "client-0/1000 boo")


def store_a_phantom(random: Random, history: History) -> None:
    add(history, random.choice(ROOMS), "client-0/1000 boo", "client-0")


def receive_from_another_room(random: Random, history: History) -> None:
    connection = some(random, history)
    other = next(room for room in ROOMS if room != connection.room)
    connection.bodies.insert(random.randint(0, len(connection.bodies)), random.choice(history.rooms[other]).body)


def store_in_another_room(random: Random, history: History) -> None:
    stored = random.choice(history.rooms["blue"])
    add(history, "green", stored.body, stored.user)


def lose_from_the_history(random: Random, history: History) -> None:
    log = history.rooms[random.choice(ROOMS)]
    del log[random.randrange(len(log))]


def lose_from_the_history_and_count_anew(random: Random, history: History) -> None:
    room = random.choice(ROOMS)
    log = history.rooms[room]
    del log[random.randrange(len(log) - 1)]
    history.rooms[room] = [stored._replace(offset=place) for place, stored in enumerate(log, 1)]


def lose_the_end_of_the_history(random: Random, history: History) -> None:
    del history.rooms[random.choice(ROOMS)][-random.randint(1, 3) :]


def swap_in_the_history(random: Random, history: History) -> None:
    log = history.rooms[random.choice(ROOMS)]
    place = random.randrange(len(log) - 1)
    first, second = log[place : place + 2]
    log[place : place + 2] = [second._replace(offset=first.offset), first._replace(offset=second.offset)]


def corrupt_a_receipt(random: Random, history: History) -> None:
    bodies = some(random, history).bodies
    bodies[random.randrange(len(bodies))] += "!"


def corrupt_the_history(random: Random, history: History) -> None:
    log = history.rooms[random.choice(ROOMS)]
    place = random.randrange(len(log))
    log[place] = log[place]._replace(body=log[place].body + "\N{REPLACEMENT CHARACTER}")


def name_another_sender(random: Random, history: History) -> None:
    log = history.rooms[random.choice(ROOMS)]
    place = random.randrange(len(log))
    log[place] = random.choice([log[place]._replace(user="mallory"), log[place]._replace(key="another")])


def tell_a_newcomer_of_before(random: Random, history: History) -> None:
    """What somebody had heard of before the newcomer came."""
    added = last(random, history)
    heard = max(ack.at for ack in history.acks)
    newcomer = replace(added, opened=heard + 1, after=None, last=1, joined=None, bodies=[])
    newcomer.bodies += [stored.body for stored in history.rooms[added.room]][-20:]
    history.connections.append(newcomer)


def tell_again_after_a_return(random: Random, history: History) -> None:
    connection = random.choice([one for one in history.connections if one.after])
    assert connection.after
    connection.bodies.insert(0, history.rooms[connection.room][connection.after - 1].body)


def tell_too_little_of_the_history(random: Random, history: History) -> None:
    newcomer = replace(last(random, history), opened=1e6, after=None, last=20, joined=2e6)
    newcomer.bodies = [stored.body for stored in history.rooms[newcomer.room]][-19:]
    history.connections.append(newcomer)


def acknowledge_with_another_offset(random: Random, history: History) -> None:
    place = random.choice([place for place, ack in enumerate(history.acks) if ack.offset])
    offset = history.acks[place].offset
    assert offset
    history.acks[place] = replace(history.acks[place], offset=offset + random.choice([-1, 1]))


def acknowledge_what_is_lost(random: Random, history: History) -> None:
    history.acks.append(Ack(random.choice(lost(history)).id, None, 1e6))


def acknowledge_what_nobody_sent(random: Random, history: History) -> None:
    history.acks.append(Ack("client-0/1000", None, 1e6))


def tell_one_of_what_is_lost(random: Random, history: History) -> None:
    send = random.choice(lost(history))
    random.choice([one for one in history.connections if one.room == send.room]).bodies.append(send.body)


def store_what_was_refused(random: Random, history: History) -> None:
    stored = random.choice(history.rooms[random.choice(ROOMS)])
    history.refused.append(stored.body.split(" ")[0])


def store_a_sender_out_of_order(random: Random, history: History) -> None:
    sends = {send.body: send for send in history.sends}
    streams: dict[tuple[str, int], list[Send]] = {}
    for log in history.rooms.values():
        for stored in log:
            send = sends[stored.body]
            streams.setdefault((send.client, send.stream), []).append(send)
    exchange(history, *random.sample(random.choice([found for found in streams.values() if len(found) > 1]), 2))


def store_before_what_was_acknowledged(random: Random, history: History) -> None:
    log = history.rooms[random.choice(ROOMS)]
    sends = {send.body: send for send in history.sends}
    early, late = sends[log[0].body], sends[log[-1].body]
    exchange(history, early, late)
    history.acks.append(Ack(early.id, None, late.at - 0.001))


def planted(plant: "Plant", random: Random) -> set[Kind]:
    history = clean(random)
    plant(random, history)
    return {violation.kind for violation in check(history)}


Plant: TypeAlias = Callable[[Random, History], None]

FAULTS: list[tuple[Plant, set[Kind]]] = [
    (lose_one_in_the_middle, {Kind.MISSED}),
    (lose_the_first_after_a_return, {Kind.MISSED}),
    (lose_all_after_a_return, {Kind.MISSED}),
    (lose_the_tail, {Kind.MISSED_TAIL, Kind.MISSED}),
    (never_tell_a_newcomer, {Kind.MISSED_TAIL}),
    (double_a_receipt, {Kind.DOUBLED}),
    (double_in_the_history, {Kind.DOUBLED}),
    (swap_receipts, {Kind.SWAPPED, Kind.BEFORE}),
    (receive_a_phantom, {Kind.PHANTOM}),
    (store_a_phantom, {Kind.PHANTOM}),
    (receive_from_another_room, {Kind.CROSSED}),
    (store_in_another_room, {Kind.CROSSED}),
    (lose_from_the_history, {Kind.HISTORY_OFFSET, Kind.NOT_KEPT}),
    (lose_from_the_history_and_count_anew, {Kind.NOT_KEPT, Kind.ACKNOWLEDGED_THEN_LOST}),
    (lose_the_end_of_the_history, {Kind.NOT_KEPT}),
    (swap_in_the_history, {Kind.SWAPPED, Kind.BEFORE}),
    (corrupt_a_receipt, {Kind.CORRUPTED}),
    (corrupt_the_history, {Kind.CORRUPTED}),
    (name_another_sender, {Kind.MISATTRIBUTED}),
    (tell_a_newcomer_of_before, {Kind.BEFORE}),
    (tell_again_after_a_return, {Kind.BEFORE}),
    (tell_too_little_of_the_history, {Kind.MISSED}),
    (acknowledge_with_another_offset, {Kind.WRONG_OFFSET}),
    (acknowledge_what_is_lost, {Kind.ACKNOWLEDGED_THEN_LOST}),
    (acknowledge_what_nobody_sent, {Kind.PHANTOM}),
    (tell_one_of_what_is_lost, {Kind.NOT_KEPT}),
    (store_what_was_refused, {Kind.REFUSED_THEN_STORED}),
    (store_a_sender_out_of_order, {Kind.SENDER_ORDER}),
    (store_before_what_was_acknowledged, {Kind.OVERTAKEN}),
]


@pytest.mark.parametrize(("plant", "kinds"), FAULTS, ids=[plant.__name__ for plant, _ in FAULTS])
def test_a_fault_is_found_in_every_history(plant: Plant, kinds: set[Kind]) -> None:
    found = {seed: planted(plant, Random(seed)) for seed in SEEDS}
    assert {seed: others for seed, others in found.items() if not others & kinds} == {}


def test_every_kind_of_fault_is_planted() -> None:
    assert {kind for _, kinds in FAULTS for kind in kinds} == set(Kind)
