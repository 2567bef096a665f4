import pytest

from hhh_jax.data import wikitext

PLAIN = {
    "[[Anteater]]s and [[Ant|ants]]": "Anteaters and ants",
    "[[File:A.jpg|thumb|An [[ant]] here]]Text[[Image:B.png]]": "Text",
    "Text[[Category:Ants]][[fr:Fourmi]]": "Text",
    "[[:Category:Ants]], [[#Diet]], [[Re:Zero]], [[Ant_hill]]": "Category:Ants, Diet, Re:Zero, Ant hill",
    "[http://a.org The ''page''], http://b.org, [http://c.org]": "The page, ,",
    'It eats.<ref name="a">{{cite|x=[[y]]}}</ref> It sleeps.<ref name="a" />': "It eats. It sleeps.",
    "<references/>Text<references>x</references>": "Text",
    "'''Bold''', ''italics'' and '''''both'''''": "Bold, italics and both",
    "{{Infobox|a={{b|c}}|d=[[e]]}}\nThe ant": "The ant",
    "Tesla ({{lang|sr|x}}; born 1856) and Aristotle ({{lang|el|y}})": "Tesla (born 1856) and Aristotle",
    "Before\n{| class=x\n! a\n|-\n| b || c\n|}\nAfter": "Before\n\nAfter",
    "<table><tr><td>x</td></tr></table>Text": "Text",
    "* one\n** two\n# three\n; four : five": "one\ntwo\nthree\nfour five",
    "&lt;, &amp;, &eacute;, &#65;, &bogus;": "<, &, é, A, &bogus;",
    "&#55296;half a surrogate pair": "half a surrogate pair",
    "x<sup>2</sup>, <math>x^2</math><b>bold</b><br>next<br />line": "x2, bold\nnext\nline",
    "<nowiki>''as it is''</nowiki> <gallery>\nA.jpg\n</gallery>": "as it is",
    "__NOTOC__\n\n\n\nA  b&nbsp;c\n\n\n\nD \n E": "A b c\n\nD\nE",
    "a < b and c > d": "a < b and c > d",
    "": "",
}
UNBALANCED = ["{{open", "shut}}", "[[open", "shut]]", "<ref>open", "shut</ref>", "{| open", "x\n|}", "<b>open", "a</i>"]


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_is_what_a_reader_sees(text):
    assert wikitext.plain(text) == PLAIN[text]


@pytest.mark.parametrize("text", UNBALANCED)
def test_unbalanced_markup_has_no_plain_text(text):
    assert wikitext.plain(text) is None


def test_a_wiki_has_its_own_names_of_files():
    text = "Text[[Datei:A.jpg|mini|Ein [[Tier]]]]"
    assert wikitext.plain(text, {"datei"}) == "Text"
    assert wikitext.plain(text, {"file"}) == "Textmini|Ein Tier"


def test_sections_end_at_the_next_heading_of_any_level():
    text = "lead\n== A ==\na\n===B=== \nb\n<!-- == C == -->\n==A==\nagain\n== not\nnor = this\n======\n"
    assert wikitext.sections(text) == {
        (wikitext.LEAD, 0): "lead\n",
        ("A", 0): "\na\n",
        ("B", 0): "\nb\n\n",
        ("A", 1): "\nagain\n== not\nnor = this\n======\n",
    }
    assert wikitext.sections("a<!-- never closed\n== B ==\nb") == {(wikitext.LEAD, 0): "a"}


@pytest.mark.parametrize(
    "text",
    ["<b>" * 15_000, "<ref>" * 9_000, "[http://" * 6_000, "*" * 50_000, ":;" * 25_000, "{|\n|-\n" * 8_000,
     "<a " * 8_000 + ">" * 8_000 + "</a>" * 8_000, "{{a|" * 12_000, "= " * 25_000, "'" * 50_000, "<!--" * 12_000],
)  # fmt: skip
def test_what_vandals_type_takes_no_time(text):
    """The parser, left to itself, takes from seconds to many minutes for most of these."""
    wikitext.plain(text)
    wikitext.sections(text * 20)
