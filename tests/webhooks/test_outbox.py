"""Events sent to a real receiver: one that takes them, fails first, is slow, or is not there."""

import threading

import listener as listeners
import pytest

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.ledger import events, stores
from mlflow_breadcrumbs.webhooks import outbox

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def listener():
    with listeners.running() as found:
        yield found


@pytest.fixture
def receiver(listener, tmp_path, monkeypatch):
    """The listener as a receiver that is known to an empty ledger."""
    monkeypatch.setenv(stores.VARIABLE, f"sqlite:///{tmp_path}/ledger.db")
    found = outbox.Receiver(listener.url, SECRET)
    outbox.deliver(found)
    return found


def write(kind="alias", phase="done", **details):
    draft = events.Draft(actor="ann@here", kind=kind, phase=phase, name="m", details=details)
    with stores.opened() as opened, opened.writing() as connection:
        return events.append(connection, draft)


def outcome(done):
    return done.sent, done.waiting, done.problem


def test_an_event_is_sent_signed_in_the_specifications_form(listener, ledger_uri):
    receiver = outbox.Receiver(listener.url, SECRET)
    assert outcome(outbox.deliver(receiver)) == (0, 0, None)
    write(alias="champion", before="1", after="2", because="promote")
    assert outcome(outbox.deliver(receiver)) == (1, 0, None)
    assert outcome(outbox.deliver(receiver)) == (0, 0, None)
    listener.check(SECRET)
    (sent,) = listener.events
    (event,) = ledger.history("m")
    assert sent == {"type": "alias.done", "timestamp": event.time, "data": event.to_dict()}
    headers, _ = listener.requests[0]
    assert headers["content-type"] == "application/json"
    with pytest.raises(errors.SignatureError):
        listener.check("some other secret of ours")


def test_only_outcomes_about_promotions_are_sent(listener, receiver):
    for kind in ("merge", "import", "verify", "export", "alias", "alias_observed", "approval"):
        write(kind)
    write("alias", "intent")
    write("promotion", "failed")
    assert outbox.deliver(receiver).sent == 4
    assert [sent["type"] for sent in listener.events] == [
        "alias.done",
        "alias_observed.done",
        "approval.done",
        "promotion.failed",
    ]


def test_the_kinds_can_be_chosen(listener, receiver):
    write("merge")
    write("alias")
    assert outbox.deliver(outbox.Receiver(receiver.url, SECRET, ("merge",))).sent == 1
    assert listener.events[0]["type"] == "merge.done"


def test_one_that_fails_first_gets_all_in_order_and_the_same_id_again(listener, receiver):
    for number in range(3):
        write(number=number)
    listener.answers = [500, 302]
    words = "event 1: the receiver answered 500 Internal Server Error"
    assert outcome(outbox.deliver(receiver)) == (0, 3, words)
    assert outcome(outbox.deliver(receiver)) == (0, 3, "event 1: the receiver answered 302 Found")
    assert outcome(outbox.deliver(receiver)) == (3, 0, None)
    assert [sent["data"]["details"]["number"] for sent in listener.events] == [0, 0, 0, 1, 2]
    ids = [headers["webhook-id"] for headers, _ in listener.requests]
    assert len(set(ids[:3])) == 1
    assert len(set(ids)) == 3


def test_a_patient_sender_waits_longer_each_time(listener, receiver, monkeypatch):
    waits = []
    monkeypatch.setattr(outbox, "_in", lambda seconds: waits.append(seconds) or "9999")
    write()
    listener.answers = [500] * 20
    for _ in range(12):
        monkeypatch.setattr(outbox, "_soon", lambda: "")
        outbox.deliver(receiver)
    assert waits == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]
    assert outcome(outbox.deliver(receiver, patient=True))[:2] == (0, 1)
    assert len(listener.requests) == 12  # it is not due


def test_one_that_is_not_there_gets_them_when_it_is_back(tmp_path, monkeypatch):
    monkeypatch.setenv(stores.VARIABLE, f"sqlite:///{tmp_path}/ledger.db")
    with listeners.running() as first:
        receiver = outbox.Receiver(first.url, SECRET)
        outbox.deliver(receiver)
        port = int(first.url.split(":")[2].split("/")[0])
    write()
    assert outcome(outbox.deliver(receiver)) == (0, 1, "event 1: the receiver is not there")
    with listeners.running(port) as again:
        assert outcome(outbox.deliver(receiver)) == (1, 0, None)
        assert len(again.events) == 1


def test_one_that_does_not_answer(listener, receiver, monkeypatch):
    monkeypatch.setattr(outbox, "SECONDS", 0.2)
    listener.silent = threading.Event()
    write()
    words = "event 1: the receiver does not answer in time"
    assert outcome(outbox.deliver(receiver)) == (0, 1, words)


def test_a_job_does_not_wait_for_one_that_does_not_answer(listener, receiver, monkeypatch):
    monkeypatch.setattr(outbox, "BRIEFLY", 0.2)
    monkeypatch.setattr(outbox, "_post", _never_ending(outbox._post))
    listener.silent = threading.Event()
    write()
    outbox.deliver_briefly(receiver, ledger.now())
    assert listener.come.wait(30)
    assert not listener.silent.is_set()  # the request is still open, and the job goes on


def _never_ending(post):
    """A receiver that draws its answer out: no timeout of a read ever strikes."""
    return lambda receiver, event, _: post(receiver, event, 60)


def test_a_job_tells_what_it_wrote_also_to_one_that_is_new(listener, ledger_uri, monkeypatch):
    monkeypatch.setattr(outbox, "BRIEFLY", 60)
    write(number=0)
    begun = later_than(ledger.history("m")[-1].time)
    write(number=1)
    outbox.deliver_briefly(outbox.Receiver(listener.url, SECRET), begun)
    assert [sent["data"]["details"]["number"] for sent in listener.events] == [1]


def later_than(time):
    while (now := ledger.now()) <= time:
        pass
    return now


def test_a_job_goes_on_whatever_happens(receiver, caplog, monkeypatch):
    monkeypatch.setattr(outbox, "BRIEFLY", 60)
    monkeypatch.setenv(stores.VARIABLE, "postgresql://ann@127.0.0.1:9/x")
    outbox.deliver_briefly(receiver, ledger.now())
    assert "events were not delivered: the ledger " in caplog.text


def test_while_one_process_delivers_another_does_not(listener, receiver):
    listener.silent = threading.Event()
    write()
    thread = threading.Thread(target=outbox.deliver, args=(receiver,))
    thread.start()
    assert listener.come.wait(30)
    assert outcome(outbox.deliver(receiver)) == (0, 1, "another process is delivering them")
    listener.silent.set()
    thread.join()
    assert len(listener.events) == 1


def test_an_event_that_is_refused_can_be_given_up(listener, receiver):
    write(number=0)
    write(number=1)
    listener.answers = [400]
    assert outbox.deliver(receiver).waiting == 2
    assert outcome(outbox.deliver(receiver, skip=True)) == (1, 0, None)
    assert [sent["data"]["details"]["number"] for sent in listener.events] == [0, 1]


def test_the_whole_history_where_it_is_asked_for(listener, ledger_uri):
    for number in range(3):
        write(number=number)
    receiver = outbox.Receiver(listener.url, SECRET)
    assert outbox.deliver(receiver).sent == 0
    assert outbox.deliver(receiver, since=1).sent == 2
    assert [sent["data"]["sequence"] for sent in listener.events] == [2, 3]


def test_following_delivers_what_comes(listener, receiver):
    rounds = outbox.follow(receiver, interval=0.01)
    assert next(rounds).sent == 0
    write()
    assert next(rounds).sent == 1


def test_the_ledger_keeps_no_url(listener, receiver, tmp_path):
    assert listener.url.encode() not in (tmp_path / "ledger.db").read_bytes()


def test_a_url_that_is_none():
    with pytest.raises(errors.HookError, match=r"events can't be sent to 'ftp://x'; write https"):
        outbox.Receiver("ftp://x", SECRET)
