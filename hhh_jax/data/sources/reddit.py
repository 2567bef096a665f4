"""Reddit: two chains of comments that differ in the last one, the one with more upvotes against the other (C.1).

    python -m hhh_jax.data.prepare --source=reddit --input=RS_2019-01.zst,RC_2019-01.zst --output=DIR
    ... --option=subreddits=askscience,books --option=min_difference=2 --option=pairs_per_thread=4

Pushshift's dumps have a submission (RS) or a comment (RC) a line, as the JSON object of Reddit's own interface. Both
kinds may be mixed, in any order; what belongs to a thread is found by its name. Threads go on in the next month's
file; comments whose submission lies in a file that isn't given are counted as such.

A chain is the submission, a comment to it, a comment to that, and so on. The last comments of a pair have the same
parent and scores at least `min_difference` apart: 5 by default, for Reddit blurs the scores that it shows by a few
votes. A thread gives `pairs_per_thread` pairs, 1 by default, so that no context is seen twice, as with Stack Exchange's
questions; the paper says neither. A comment is drawn among all and another among its siblings that are far enough from
it, by hashes of the seed and the comments' names, so that other threads don't matter. No comment ends two chains.

Deleted and removed comments and those of bots are out, with all that was said below them; so are threads whose
submission is of that kind. Comments that moderators pinned, and those whose score was hidden, are in chains but aren't
compared. Names become user1, user2, ... in the order in which a chain mentions them, each chain by itself: the last
comment's author has no number that could tell which side it is on. Without a name (deleted accounts, or the field is
missing) it is just user. Addresses of links are left out, and so are lines such as "Edit: thanks for the gold", which
tell how the comment fared. What follows u/ is a name; so is that of an author of the pair after @ or, where it has a
digit, an underscore or a hyphen, anywhere. Others may be words.

The paper names no subreddits. These, of about 50, are large, in English, moderated with care, and answer in words
rather than pictures. AmItheAsshole is left out on purpose, as in the paper: it overlaps the Commonsense Morality task
of ETHICS, and so do its like (relationship_advice, tifu). ``--option=subreddits=*`` takes any, those too.
"""

from __future__ import annotations

import functools
import hashlib
import html
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from hhh_jax.data.records import Pair
from hhh_jax.data.rows import Skip, each, json_object, number, text
from hhh_jax.data.source import Block, Drop, Made, Options, Row, Source
from hhh_jax.data.streams import line_blocks, lines
from hhh_jax.errors import UserError

SUBREDDITS = (
    "askscience", "AskHistorians", "AskSocialScience", "AskAnthropology", "AskEconomics", "asklinguistics",
    "askphilosophy", "AskEngineers", "AskPhysics", "askmath", "explainlikeimfive", "NoStupidQuestions",
    "changemyview", "NeutralPolitics", "TrueReddit", "Foodforthought", "DepthHub", "philosophy", "history", "science",
    "space", "math", "learnmath", "statistics", "MachineLearning", "programming", "learnprogramming", "compsci",
    "cscareerquestions", "techsupport", "buildapc", "photography", "personalfinance", "LifeProTips", "YouShouldKnow",
    "IWantToLearn", "languagelearning", "AskCulinary", "Cooking", "DIY", "HomeImprovement", "gardening", "Fitness",
    "bodyweightfitness", "books", "suggestmeabook", "Fantasy", "printSF", "WritingPrompts", "boardgames", "truegaming",
    "TrueFilm", "LetsTalkMusic", "IAmA",
)  # fmt: skip
DELETED = "deleted or removed"
BOT = "by a bot"
_DELETED_TEXTS = {"[deleted]", "[removed]", "[removed by reddit]", "[deleted by user]", "[unavailable]"}
_NAMELESS = {"[deleted]", "[removed]"}
_SUBREDDIT = re.compile(rb'"subreddit"\s*:\s*"([^"\\]*)"')
_SAYS_BOT = re.compile(r"\bI(?: am|'m) a bot\b", re.IGNORECASE)
_MENTION = r"(?<![A-Za-z0-9_])(?P<u>/?u(?:ser)?/)(?P<mentioned>[A-Za-z0-9_-]{3,20})(?![A-Za-z0-9_])"
_LINK = re.compile(r'(!?)\[([^\[\]\n]*)\]\((?:[^()\s]|\([^()\s]*\))*(?:\s+"[^"\n]*")?\)')
_REACTION = re.compile(  # to a comment's own success
    r"^[^\w\n]*(?:edit|eta)\b.*"
    r"(?:thank|\bgold|gilded|silver|platinum|award|upvot|downvot|karma|blew up|blown up|inbox).*$",
    re.IGNORECASE | re.MULTILINE,
)
_INVISIBLE = str.maketrans("\xa0", " ", "\u200b\ufeff\r\0")


def blocks(inputs: Sequence[str], options: Options) -> Iterator[Block]:
    """Blocks of lines. Raises UserError for options that make no sense."""
    for name in ("min_difference", "pairs_per_thread"):
        if options[name] < 1:
            raise UserError(f"--option={name}={options[name]}: must be at least 1")
    try:
        re.compile(options["bots"])
    except re.error as error:
        raise UserError(f"--option=bots={options['bots']}: not a regular expression: {error}") from None
    return line_blocks(inputs)


def read(block: Block, options: Options) -> Iterator[Row | Drop]:
    """Submissions and comments, by thread."""
    wanted, bots = _wanted(options["subreddits"]), re.compile(options["bots"])

    def items() -> Iterator[tuple[str, dict[str, Any] | Skip]]:
        for place, line in lines(block):
            if line.strip():
                # All names in the line, also those of a crosspost's origin: if none is wanted, it needn't be parsed.
                named = _SUBREDDIT.findall(line)
                unwanted = wanted and named and not any(name.lower() in wanted for name in named)
                yield place, _unwanted() if unwanted else json_object(line)

    return each(items(), lambda item, place: _row(item, wanted, bots, place))


@functools.lru_cache(1)
def _wanted(subreddits: str) -> frozenset[bytes]:
    """The subreddits' names in lower case; none for all."""
    names = frozenset(name.strip().lower().encode() for name in subreddits.split(",") if name.strip())
    return frozenset() if b"*" in names else names


def _unwanted() -> Skip:
    return Skip("subreddit not on the list", bad=False)


def _row(item: dict[str, Any], wanted: frozenset[bytes], bots: re.Pattern[str], place: str) -> Row:
    if item.get("subreddit") is None:  # an advertisement
        raise Skip("without a subreddit", bad=False)
    if wanted and text(item, "subreddit").lower().encode() not in wanted:
        raise _unwanted()
    author = _text_or_empty(item, "author")
    author = "" if author in _NAMELESS else author
    fields: dict[str, Any]
    if "body" in item and "link_id" in item:
        said = text(item, "body")
        fields = {"id": "t1_" + text(item, "id"), "parent": text(item, "parent_id"), "text": said}
        score = number(item, "score")
        fields["score"] = None if item.get("score_hidden") or item.get("stickied") else score
        key = text(item, "link_id")
        if not key.startswith("t3_"):  # a comment could be its own thread
            raise Skip("link_id is no submission's name", key[:40])
    elif "title" in item:
        title, said = text(item, "title"), _text_or_empty(item, "selftext")
        key = "t3_" + text(item, "id")
        fields = {"id": key, "text": f"{title}\n\n{said}".strip()}
        said = said or title
    else:
        raise Skip("neither comment nor submission", ", ".join(list(item)[:8]))
    if said.strip().lower() in _DELETED_TEXTS:
        fields["out"] = DELETED
    elif bots.fullmatch(author) or _SAYS_BOT.search(said):
        fields["out"] = BOT
    return Row(key, fields | {"author": author}, place)


def _text_or_empty(item: Mapping[str, Any], name: str) -> str:
    """A text that may be missing; it is empty then."""
    return "" if item.get(name) is None else text(item, name)


def join(key: str, rows: Sequence[Row], options: Options) -> Iterator[Made | Drop]:
    """The pairs of a thread."""
    posts: dict[str, Row] = {}
    for row in rows:
        if row.fields["id"] in posts:
            yield Drop("id seen before", row.place)
        else:
            posts[row.fields["id"]] = row
    states = _states(key, posts)
    used: set[str] = set()
    pairs = _draw(key, posts, states, options)
    for pair, ends in pairs:
        used.update(ends, (row.fields["id"] for row in _above(posts[ends[0]], posts)))
        yield Made(pair)
    for name, row in posts.items():
        if name not in used:
            reason = states[name] or ("comment not drawn" if pairs else "thread without a pair")
            yield Drop(reason, row.place)


def _states(key: str, posts: Mapping[str, Row]) -> dict[str, str]:
    """Why each post can't be in a chain, or an empty string."""
    states: dict[str, str] = {}
    if key in posts:
        states[key] = posts[key].fields.get("out", "")
    for name in posts:
        path: dict[str, None] = {}
        while name in posts and name not in states and name not in path:  # a circle ends nowhere, as a missing parent
            path[name] = None
            name = posts[name].fields["parent"]
        above = states.get(name, "parent missing" if key in posts else "submission missing")
        for child in reversed(path):
            if above in (DELETED, BOT):
                above = f"below what is {above}"
            above = states[child] = posts[child].fields.get("out") or above
    return states


def _draw(
    key: str, posts: Mapping[str, Row], states: Mapping[str, str], options: Options
) -> list[tuple[Pair, tuple[str, str]]]:
    """The thread's pairs, each with the names of its last comments."""
    siblings: dict[str, list[tuple[int, str]]] = {}
    for name, row in posts.items():
        if not states[name] and name != key and row.fields["score"] is not None:
            siblings.setdefault(row.fields["parent"], []).append((row.fields["score"], name))
    candidates = []
    for group in siblings.values():
        group.sort()
        candidates += [(_hash(f"{options['seed']} {key} {name}"), score, name, group) for score, name in group]
    candidates.sort(key=lambda candidate: candidate[0])
    pairs: list[tuple[Pair, tuple[str, str]]] = []
    done: set[str] = set()
    for draw, score, name, group in candidates:
        if len(pairs) == options["pairs_per_thread"]:
            break
        below = bisect_right(group, score - options["min_difference"], key=_score)
        above = bisect_left(group, score + options["min_difference"], key=_score)
        far = below + len(group) - above
        if name in done or not far:
            continue
        index = draw % far
        other = group[index if index < below else above + index - below][1]
        ends = (name, other) if index < below else (other, name)
        if other not in done and (pair := _pair(key, *ends, posts)):
            pairs.append((pair, ends))
            done.update(ends)
    return pairs


def _score(comment: tuple[int, str]) -> int:
    return comment[0]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _pair(key: str, good: str, bad: str, posts: Mapping[str, Row]) -> Pair | None:
    """None if the texts are empty or the same."""
    if len({"", _clean(posts[good]), _clean(posts[bad])}) < 3:
        return None
    above = _above(posts[good], posts)
    names = _names([*above, posts[good], posts[bad]])
    context = _written(above, names)
    better, worse = (_written([*above, posts[n]], names).removeprefix(context).rstrip() for n in (good, bad))
    return None if better == worse else Pair(f"{key}:{good}>{bad}", context, better, worse, key)


def _above(row: Row, posts: Mapping[str, Row]) -> list[Row]:
    """What a comment answers to, from the submission down."""
    chain = []
    while "parent" in row.fields:
        row = posts[row.fields["parent"]]
        chain.append(row)
    return chain[::-1]


def _written(chain: Sequence[Row], names: re.Pattern[str]) -> str:
    """A chain as the paper writes it, with aliases, each post followed by an empty line."""
    aliases: dict[str, str] = {}

    def alias(name: str) -> str:
        return aliases.setdefault(name.lower(), f"user{len(aliases) + 1}") if name else "user"

    def hide(match: re.Match[str]) -> str:
        if match["u"] is not None:
            return match["u"] + alias(match["mentioned"])
        return match["at"] + alias(match["name"]) if match["at"] or not match["name"].isalpha() else match[0]

    parts = []
    for row in chain:
        label = "COMMENT" if "parent" in row.fields else "SUBMISSION"
        author = alias(row.fields["author"])
        parts.append(f"{label} by {author}: {names.sub(hide, _clean(row))}\n\n")
    return "".join(parts)


def _names(posts: Sequence[Row]) -> re.Pattern[str]:
    """Finds mentions, and the names of the posts' authors, whole and maybe after an @."""
    authors = sorted({row.fields["author"] for row in posts} - {""}, key=lambda author: (-len(author), author))
    either = "|".join(map(re.escape, authors)) or "(?!)"
    name = rf"(?<![A-Za-z0-9_])(?P<at>@?)(?P<name>{either})(?![A-Za-z0-9_])"
    return re.compile(f"{_MENTION}|{name}", re.IGNORECASE)


def _clean(row: Row) -> str:
    """A post's text as it was written, but for the addresses of links and reactions to votes."""
    said = html.unescape(row.fields["text"]).translate(_INVISIBLE)
    said = _LINK.sub(lambda match: f"[{match[2] or 'image'}]" if match[1] else match[2], said)
    return re.sub(r"\n\s*\n", "\n\n", _REACTION.sub("", said)).strip()


SOURCE = Source(
    name="reddit",
    about="Reddit threads: chains of comments that differ in the last one, the one with more upvotes is better (C.1)",
    licence="text of Reddit's users, no licence stated; Pushshift's dumps of it (RS_*, RC_*)",
    kinds=("pairs",),
    blocks=blocks,
    read=read,
    join=join,
    options=MappingProxyType(
        {
            "subreddits": ",".join(SUBREDDITS),
            "min_difference": 5,
            "pairs_per_thread": 1,
            "bots": "AutoModerator|.*[-_]bot|.*Bot",  # but not Talbot
        }
    ),
)
