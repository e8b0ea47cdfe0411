"""Sources that are a subject of NATS JetStream: messages are acknowledged once their rows are in the warehouse.

A durable pull consumer, called after the raw table, remembers on the server what has been acknowledged. What has not,
because a load was killed, its batch refused or the server gone, comes again; the table's key tells what it has already.
"""

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from ml.declarations import Source
from orchestration import warehouse
from orchestration.addresses import NAMED, expanded, scrubbed, without_secrets
from orchestration.batches import BROKEN, KNOWN_AT, OWN, TAKEN, Batch, LoadError, Loading, new_batch_id, told
from orchestration.json_lines import json_rows

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.js.api import ConsumerInfo

# A batch. Each costs a transaction of a fraction of a second, whatever its size; and it is held in memory.
MAX_ROWS = 50_000  # messages
MAX_BYTES = 64 << 20
MAX_BATCH_SECONDS = 10.0  # of a server that gives its messages slowly
# A run. It holds the warehouse, which others wait for; the sensor asks for another run of what is left.
MAX_RUN_ROWS = 1_000_000
MAX_RUN_SECONDS = 300.0
# How long the server waits for an acknowledgement before it gives a message to who asks next, which is also how long
# the messages of a killed load stay away, so not much longer than a batch takes to land. One that takes longer loses
# nothing: a late acknowledgement counts, and until then nobody asks, as there is one load at a time.
ACK_WAIT = 30.0
# Messages that may be unacknowledged: a batch, and those of loads that were killed.
MAX_UNACKNOWLEDGED = 4 * MAX_ROWS
PULLED = 1_000  # messages asked for at once: enough that the way to the server and back is no matter
ANSWER_SECONDS = 10.0
POLL_SECONDS = 0.2  # between two looks for messages that a killed load has left
NO_CONSUMER, NO_STREAM = 10014, 10059  # JetStream's codes
DRAINED = ("404", "408")  # no more messages

Result = TypeVar("Result")


class Address(msgspec.Struct, frozen=True):
    """Where messages are, in the words of the declaration, so that no secret is in it, and what tells them apart."""

    server: str
    login: str
    stream: str
    subject: str
    consumer: str


class Waiting(msgspec.Struct, frozen=True):
    """How many messages wait to be loaded, and what they are: the same text as long as they are the same ones."""

    messages: int
    state: str


def batches_of_stream(loading: Loading) -> Iterator[Batch]:
    """Micro-batches of what waits in the stream; ends when nothing does, or the run has reached its bounds.

    What is published meanwhile is left for the next run, once all before it is loaded: else a run would end in a
    thousand batches of one row. A message is a JSON object or an array of them; what is neither is no row. Messages of
    a batch that is refused are given back, and come again with all that is new: a batch has ever more rows then, among
    which a few bad ones weigh less. Where they are too many, somebody has to raise `max_rejected`, or mend the source.
    A table that nothing has come for is made empty, if all its columns have a type. Raises `LoadError`.
    """
    source, address = loading.source, address_of(loading.source)
    started, taken, is_drained, left = time.monotonic(), 0, False, 0
    with _connected(source, address) as server:
        server.bind()
        while taken < MAX_RUN_ROWS and time.monotonic() < started + MAX_RUN_SECONDS:
            messages, is_drained = server.gather(min(MAX_ROWS, MAX_RUN_ROWS - taken))
            if messages:
                try:
                    yield _batch(loading, address, messages)
                except BaseException:
                    server.give_back(messages)
                    raise
                server.acknowledge(messages)
                taken += len(messages)
            if is_drained:
                # Those that a killed load had taken come when their time is over. There is one load at a time.
                left = server.unacknowledged()
                if not left or time.monotonic() > started + server.ack_wait + 1:
                    break
                time.sleep(POLL_SECONDS)
        if not is_drained:
            left = server.waiting().messages
    if left:
        loading.note(f"{left:,} messages of {address.subject} are left for the next run")
    if not warehouse.exists(loading.connection, source.schema, source.table) and _has_types(source):
        columns = [
            f"null::{kind} as {warehouse.name(name)}" for name, kind in source.types.items() if not _is_own(name)
        ]
        yield Batch(id=new_batch_id(), source=address.subject, relation=f"(select {', '.join(columns)} where false)")


def waiting(source: Source) -> Waiting:
    """What waits in a source's stream. Changes nothing there, and opens no warehouse. Raises `LoadError`."""
    with _connected(source, address_of(source)) as server:
        return server.waiting()


def address_of(source: Source) -> Address:
    """What a source's URI says. Raises `LoadError` if it lacks a part, or a password is written in it."""
    login, _, place = source.uri.partition("://")[2].rpartition("@")
    server, _, path = place.partition("/")
    stream, _, subject = path.partition("/")
    if NAMED.sub("", login.partition(":")[2]):
        raise LoadError(
            f"{_where(source)}: a password is written in it; put it into the environment, and ${{ITS_NAME}} here"
        )
    if not server or not re.fullmatch(r"[^\s.*>/\\]+", stream) or not re.fullmatch(r"[^\s.]+(\.[^\s.]+)*", subject):
        raise LoadError(
            f"{_where(source)}: is not of the form nats://<server>:<port>/<STREAM>/<subject>"
            " (a subject may have wildcards: orders.*, orders.>)"
        )
    name = f"{source.schema}-{source.table}"
    consumer = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    if consumer != name or "-" in source.schema:  # two tables must not share one
        consumer += "-" + hashlib.sha256(f"{source.schema}.{source.table}".encode()).hexdigest()[:8]
    return Address(server=server, login=login, stream=stream, subject=subject, consumer=f"scorehouse-{consumer}")


def _where(source: Source) -> str:
    return f"{told(source)}: load: from '{without_secrets(source.uri)}'"


def _is_own(column: str) -> bool:
    return column in OWN or column == KNOWN_AT


def _has_types(source: Source) -> bool:
    return bool(source.types) and all(column in source.types or _is_own(column) for column in source.columns)


def _batch(loading: Loading, address: Address, messages: list["Msg"]) -> Batch:
    """The messages' rows, and which of them are none."""
    import pyarrow as pa

    texts: list[str | None] = []
    encoded: list[str | None] = []
    for message in messages:
        try:
            text = message.data.decode()
        except UnicodeDecodeError:
            text = None
        texts.append(text)
        encoded.append(base64.b64encode(message.data).decode() if text is None else None)
    connection = loading.connection
    connection.register(
        "came", pa.table({"text": pa.array(texts, pa.string()), "encoded": pa.array(encoded, pa.string())})
    )
    try:
        connection.execute(
            f"""
            create or replace temp table messages as
            select
                text,
                encoded,
                case json_type(json)
                    when 'OBJECT' then 'object'
                    when 'ARRAY' then
                        case when list_distinct(json_type(json, '$[*]')) in ([], ['OBJECT']) then 'array' end
                end as form
            from (select *, case when json_valid(text) then text end as json from came);
            create or replace temp table given as
            with given as (
                select text as line from temp.messages where form = 'object'
                union all
                select unnest(json_extract(text, '$[*]'))::varchar as line from temp.messages where form = 'array'
            )
            select
                line,
                list_has_any(
                    list_transform(json_keys(line), lambda key: lower(key)), {warehouse.literal(sorted(TAKEN))}
                ) or len(list_filter(json_keys(line), lambda key: starts_with(lower(key), '{BROKEN}'))) > 0 as is_taken
            from given;
            create or replace temp table lines as select line from temp.given where not is_taken
            """
        )
    finally:
        connection.unregister("came")
    wanted = {**dict.fromkeys(loading.source.key, "VARCHAR"), **loading.wanted()}
    rows = json_rows(connection, "temp.lines", wanted)
    return Batch(
        id=new_batch_id(),
        source=address.subject,
        relation=rows.relation,
        form="json",
        sniffed=rows.sniffed,
        unreadable="""
            select
                case when text is null then 'is no UTF-8, so here in base64'
                    else 'is neither a JSON object nor an array of them' end as rule,
                coalesce(text, encoded) as row
            from temp.messages where form is null
            union all
            select 'has a key that is a column of the engine''s own' as rule, line as row from temp.given where is_taken
        """,
        bytes=sum(len(message.data) for message in messages),
    )


@contextmanager
def _connected(source: Source, address: Address) -> Iterator["_Server"]:
    """A connection to the server, on an event loop of its own. Raises `LoadError`, never with a secret."""
    server = _Server(source, address)
    try:
        server.connect()
        yield server
    finally:
        server.close()


class _Server:
    """A connection to the server that has a source's stream, and what is asked of it there."""

    def __init__(self, source: Source, address: Address) -> None:
        from nats.aio.client import Client

        self.source, self.address = source, address
        self.ack_wait = ACK_WAIT
        # Not set as the thread's own: whatever else runs in this process keeps the one it has.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._client: Client = Client()
        self._said: list[str] = []  # by the server, of what it was asked: it lets what it doesn't allow time out
        self._most = MAX_ROWS
        self._largest = 0
        self._inbox, self._pulls = "", 0
        self._got: list[Msg] = []
        self._wanted = 0
        self._status = ""
        self._done = asyncio.Event()

    def connect(self) -> None:
        user, _, password = expanded(self.source, self.address.login.replace(":", "\0", 1)).partition("\0")

        async def heard(error: Exception) -> None:
            self._said.append(str(error) or type(error).__name__)

        login: dict[str, Any] = {}
        if user:
            login = {"user": user, "password": password} if ":" in self.address.login else {"token": user}
        server = expanded(self.source, self.address.server)
        # Of what a connection that broke had been asked, nobody knows what came of it: the next load begins anew.
        connecting = self._client.connect(
            f"nats://{server}", error_cb=heard, allow_reconnect=False, max_reconnect_attempts=1,
            reconnect_time_wait=1, connect_timeout=int(ANSWER_SECONDS), name=self.address.consumer, **login,
        )  # fmt: skip
        self._run(connecting, "can't connect")
        self._inbox = self._client.new_inbox()

    def close(self) -> None:
        with suppress(Exception):
            self._runner.run(asyncio.wait_for(self._client.close(), ANSWER_SECONDS))
        self._runner.close()

    def bind(self) -> None:
        """Makes the durable consumer if there is none, and gets ready to receive its messages.

        A consumer that somebody has made beforehand is used as it is: who may not make one can be given one.
        """
        from nats.js.api import AckPolicy, ConsumerConfig

        address = self.address
        info = self._info()
        if info is None:
            config = ConsumerConfig(
                durable_name=address.consumer,
                description=f"loads {self.source.schema}.{self.source.table}",
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=ACK_WAIT,
                max_ack_pending=MAX_UNACKNOWLEDGED,
                filter_subject=address.subject,
            )
            info = self._run(
                self._client.jetstream().add_consumer(address.stream, config),
                f"can't make the consumer '{address.consumer}' of stream '{address.stream}'",
            )
        config = info.config
        fault = (
            f"listens to '{config.filter_subject}'" if config.filter_subject not in (address.subject, None, "")
            else "has its messages pushed" if config.deliver_subject
            else "gives a message up after some deliveries (max_deliver)" if (config.max_deliver or -1) > 0
            else "gives the headers of messages alone (headers_only)" if config.headers_only
            else f"acknowledges '{config.ack_policy}'" if config.ack_policy != AckPolicy.EXPLICIT
            else None
        )  # fmt: skip
        if fault:
            raise LoadError(
                f"{_where(self.source)}: the consumer '{address.consumer}' of stream '{address.stream}' {fault}, but"
                f" must be a pull consumer of '{address.subject}' with explicit acknowledgements; remove it, and it is"
                " made anew: all messages that the stream still has come again then, and those loaded change nothing"
            )
        self.ack_wait = config.ack_wait or ACK_WAIT
        if config.max_ack_pending and config.max_ack_pending > 0:
            self._most = min(MAX_ROWS, config.max_ack_pending)

        async def receive(message: "Msg") -> None:
            if message.reply:
                self._got.append(message)
            elif message.subject == f"{self._inbox}.{self._pulls}":
                headers = message.headers or {}
                self._status = f"{headers.get('Status', '')} {headers.get('Description', '')}".strip()
            if self._status or len(self._got) >= self._wanted:
                self._done.set()

        self._run(
            self._client.subscribe(f"{self._inbox}.*", cb=receive, pending_msgs_limit=-1, pending_bytes_limit=-1),
            "can't receive messages",
        )

    def gather(self, most: int) -> tuple[list["Msg"], bool]:
        """The next messages, of each at most one, and whether these are all that can be had now."""
        messages: list[Msg] = []
        room, until = MAX_BYTES, time.monotonic() + MAX_BATCH_SECONDS
        most = min(most, self._most)
        while len(messages) < most and room > 0 and time.monotonic() < until:
            # As many as have room if each is as large as the largest so far: the server can't be trusted to count the
            # bytes (2.9 withholds the message that would be too much until its time is over).
            wanted = max(1, min(PULLED, most - len(messages), room // (self._largest or self._client.max_payload)))
            got = self._run(self._pull(wanted), "can't receive messages")
            messages += got
            sizes = [len(message.data) for message in got]
            room -= sum(sizes)
            self._largest = max([self._largest, *sizes])
            if len(got) < wanted:
                return messages, True
        return messages, False

    async def _pull(self, wanted: int) -> list["Msg"]:
        self._got, self._wanted, self._status, self._done = [], wanted, "", asyncio.Event()
        self._pulls += 1
        request = f"$JS.API.CONSUMER.MSG.NEXT.{self.address.stream}.{self.address.consumer}"
        asked = json.dumps({"batch": wanted, "no_wait": True}).encode()
        await self._client.publish(request, asked, f"{self._inbox}.{self._pulls}")
        while True:
            came = len(self._got)
            try:
                await asyncio.wait_for(self._done.wait(), ANSWER_SECONDS)
                break
            except TimeoutError:
                if len(self._got) == came:
                    raise
        if self._status and not self._status.startswith(DRAINED):
            raise LoadError(f"{_where(self.source)}: can't receive messages: the server says {self._status}")
        return self._got

    def acknowledge(self, messages: list["Msg"]) -> None:
        """Acknowledges messages, and waits until the server has heard of it."""

        async def acknowledge() -> None:
            for message in messages[:-1]:
                await message.ack()
            await messages[-1].ack_sync(ANSWER_SECONDS)  # it hears of them in their order

        self._run(
            acknowledge(),
            "the rows have landed, but their messages can't be acknowledged, so they come again, which changes nothing",
        )

    def give_back(self, messages: list["Msg"]) -> None:
        """Has messages come again at once, not when their time is over; if that can't be, they come then."""

        async def give_back() -> None:
            for message in messages:
                await message.nak()
            await self._client.flush(int(ANSWER_SECONDS))

        with suppress(Exception):
            self._runner.run(give_back())

    def unacknowledged(self) -> int:
        info = self._info()
        return (info.num_ack_pending or 0) if info else 0

    def waiting(self) -> Waiting:
        """What waits, also for a consumer that is not made yet."""
        address, info = self.address, self._info()
        if info is None:
            asked = self._client.jetstream().stream_info(address.stream, subjects_filter=address.subject)
            state = self._run(asked, f"can't ask for the stream '{address.stream}'").state
            return Waiting(sum((state.subjects or {}).values()), f"all up to {state.last_seq}")
        # What a failed run was given moves from one to the other, and is the same as before.
        messages = (info.num_pending or 0) + (info.num_ack_pending or 0)
        floor = info.ack_floor.stream_seq if info.ack_floor else 0
        return Waiting(messages, f"{messages} after {floor} since {info.created}")

    def _info(self) -> "ConsumerInfo | None":
        """What the server knows of the consumer; None if it is not made yet."""
        from nats.js.errors import NotFoundError

        address = self.address

        async def ask() -> "ConsumerInfo | None":
            try:
                info: ConsumerInfo = await self._client.jetstream().consumer_info(address.stream, address.consumer)
                return info
            except NotFoundError as error:
                if error.err_code == NO_STREAM:
                    raise LoadError(
                        f"{_where(self.source)}: the server has no stream '{address.stream}'; make it, or correct the"
                        " name"
                    ) from None
                return None

        return self._run(ask(), f"can't ask for the consumer '{address.consumer}' of stream '{address.stream}'")

    def _run(self, asked: Coroutine[Any, Any, Result], fault: str) -> Result:
        """What comes of a request. Raises `LoadError` with the fault and what the server says."""
        from nats.errors import Error, NoRespondersError

        try:
            return self._runner.run(asked)
        except (TimeoutError, Error, OSError, ValueError) as error:
            reason = "; ".join(dict.fromkeys(self._said[-2:])) or str(error)
            if isinstance(error, NoRespondersError):
                reason = "JetStream is not enabled there"
            if not reason:
                reason = "no answer"
            text = scrubbed(self.source, f"{fault}: {reason}")
        raise LoadError(f"{_where(self.source)}: {text}")
