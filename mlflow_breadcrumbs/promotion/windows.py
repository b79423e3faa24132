"""Freeze windows: when nothing is promoted."""

import datetime
import re
import typing
import zoneinfo
from typing import Annotated, Literal, Self

import pydantic

from mlflow_breadcrumbs.promotion import fields

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = typing.get_args(Day)
MIDNIGHT = 1440
"""The end of a day, in minutes."""


def _minutes(value: object) -> object:
    """Minutes since midnight; YAML itself turns an unquoted 18:00 into 1080."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,2}):([0-5]\d)", value.strip())):
        value = int(match[1]) * 60 + int(match[2])
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MIDNIGHT:
        raise ValueError(f"{value!r} is not a time of day; write '18:00'")
    return value


def _moment(value: object) -> object:
    """A date or a local date with time; YAML has read either already, if it was unquoted."""
    if isinstance(value, datetime.datetime | datetime.date):
        found: datetime.date = value
    else:
        text = str(value).strip()
        try:
            whole = re.fullmatch(r"\d{4}-\d\d-\d\d", text)
            kind = datetime.date if whole else datetime.datetime
            found = kind.fromisoformat(text)
        except ValueError:
            raise ValueError(
                f"{value!r} is not a date; write 2026-12-20 or 2026-12-20 18:00"
            ) from None
    if isinstance(found, datetime.datetime) and found.tzinfo is not None:
        raise ValueError(f"{value!r} has a UTC offset; the window's time_zone says which it is")
    return found


def _zone(value: str) -> str:
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"{value!r} is no time zone that this machine knows; write one as Europe/Berlin "
            "(`pip install tzdata` where the system has none)"
        ) from None
    return value


Minutes = Annotated[int, pydantic.BeforeValidator(_minutes)]
Moment = Annotated[datetime.datetime | datetime.date, pydantic.BeforeValidator(_moment)]
Zone = Annotated[str, pydantic.AfterValidator(_zone)]


class Freeze(fields.Strict):
    """When nothing is promoted: every week, or between two moments."""

    days: Annotated[tuple[Day, ...], pydantic.Field(min_length=1)] | None = None
    """Weekdays on which the window begins."""
    start: Minutes | None = None
    """Of a weekly window, as '18:00'; midnight without."""
    end: Minutes | None = None
    """Of a weekly window; not after `start` means the next day. The end of the day without."""
    starts: Moment | None = None
    """The first day, or moment."""
    ends: Moment | None = None
    """The last day, or the moment at which it is over."""
    time_zone: Zone = "UTC"
    """In which these are read."""
    reason: str = ""

    @pydantic.model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        weekly = self.days is not None
        between = self.starts is not None and self.ends is not None
        times = self.start is not None or self.end is not None
        dates = self.starts is not None or self.ends is not None
        if weekly == dates or (dates and not between) or (times and not weekly):
            raise ValueError("give days (with start and end), or both starts and ends")
        if between and not self.bounds()[0] < self.bounds()[1]:
            raise ValueError("ends must be after starts")
        return self

    def bounds(self) -> tuple[datetime.datetime, datetime.datetime]:
        """The first moment, and the moment at which it is over; of a window between two."""
        zone = zoneinfo.ZoneInfo(self.time_zone)
        assert self.starts is not None
        assert self.ends is not None
        begin, over = (
            moment
            if isinstance(moment, datetime.datetime)
            else datetime.datetime.combine(moment + extra, datetime.time())
            for moment, extra in (
                (self.starts, datetime.timedelta()),
                (self.ends, datetime.timedelta(days=1)),
            )
        )
        return begin.replace(tzinfo=zone), over.replace(tzinfo=zone)

    def covers(self, moment: datetime.datetime) -> bool:
        """Whether a moment, with its time zone, lies inside."""
        if self.days is None:
            begin, over = self.bounds()
            return begin <= moment < over
        local = moment.astimezone(zoneinfo.ZoneInfo(self.time_zone))
        start, end = self.start or 0, MIDNIGHT if self.end is None else self.end
        minute, today = local.hour * 60 + local.minute, DAYS[local.weekday()]
        yesterday = DAYS[local.weekday() - 1]
        if start < end:
            return today in self.days and start <= minute < end
        return (today in self.days and minute >= start) or (yesterday in self.days and minute < end)

    def text(self) -> str:
        """The window in a few words."""
        if self.days is None:
            return f"{self.starts} to {self.ends}"
        if self.start is None and self.end is None:
            return ", ".join(self.days)
        end = MIDNIGHT if self.end is None else self.end
        hours = (f"{at // 60:02}:{at % 60:02}" for at in (self.start or 0, end))
        return f"{', '.join(self.days)} {' to '.join(hours)}"
