"""HTML as text: by hand, and words are never lost or made up."""

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hhh_jax.data.html_text import MAX_DEPTH, MarkupError, html_to_text

CASES = {
    "paragraphs": ("<p>One\nline.</p>\n\n<p>Two  <em>more</em>.</p>", "One line.\n\nTwo more."),
    "breaks": ("a<br>b<br/><br><br>c<br>", "a\nb\n\nc"),
    "headings and rules": ("<h1>T</h1>x<hr>y", "T\n\nx\n\n---\n\ny"),
    "code": (
        "<p>Do <code>f( x)</code>:</p><pre class='lang-py'><code>\nif x:\n    f(&quot;&lt;&quot;)\n\n</code></pre>so",
        'Do `f( x)`:\n\n```\nif x:\n    f("<")\n```\n\nso',
    ),
    "code with a fence": ("<pre>```\nx\n```</pre>", "````\n```\nx\n```\n````"),
    "no code": ("<p>a<code></code></p><pre>\n</pre>", "a"),
    "lists": (
        "<p>x</p><ul><li>a</li><li><p>b</p><p>c</p></li></ul><ol start=9><li>d<ul><li>e</li></ul></li><li>f</li></ol>y",
        "x\n\n- a\n- b\n\n  c\n\n9. d\n   - e\n10. f\n\ny",
    ),
    "code in a list": ("<ol><li>a<pre>  b\n    c</pre></li></ol>", "1. a\n\n   ```\n     b\n       c\n   ```"),
    "broken lists": ("<ul><ul><li>a</ul><li>b</ul><li>c", "- a\n- b\n\nc"),
    "quotations": (
        "<p>He:</p><blockquote><p>a</p><p>b</p><blockquote>c</blockquote></blockquote><p>d</p>",
        "He:\n\n> a\n>\n> b\n>\n> > c\n\nd",
    ),
    "links": (
        'see <a href="http://x.org/?a=1">this</a>, <a href="http://y.org">http://y.org</a>',
        "see this, http://y.org",
    ),
    "images": (
        '<p><img src="a" alt="enter image description here"> <img alt="a  keg"><img></p>',
        "[image] [image: a keg][image]",
    ),
    "above, below, struck": ("10<sup>3</sup> H<sub>2</sub>O <s>was</s> <sup>1</sup>note", "10^3 H2O ~~was~~ 1note"),
    "table": ("<table><tr><th>a<th>b<tr><td>1</td><td>2</td></table>", "a | b\n1 | 2"),
    "not text": ("a<!-- b --><script>c</script><style>d</style>e", "ae"),
    "entities": ("a&nbsp;b &amp;amp; &lt;p&gt; &#x1F37A;", "a b &amp; <p> \N{BEER MUG}"),
    "unclosed": ("<p>a <b>b<p>c</i></div>d", "a b\n\ncd"),
    "nothing": ("", ""),
    "spaces": (" \n\t", ""),
}


@pytest.mark.parametrize(("markup", "text"), CASES.values(), ids=CASES)
def test_by_hand(markup, text):
    assert html_to_text(markup) == text


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff")))
def test_plain_text_keeps_its_words(text):
    assert html_to_text(f"<p>{html.escape(text)}</p>").split() == text.split()


TOKENS = [
    "<p>",
    "</p>",
    "<ul>",
    "<li>",
    "</ul>",
    "<pre>",
    "</pre>",
    "<blockquote>",
    "<td>",
    "<br>",
    "<b>",
    "</b>",
    "x",
    "y",
]


@given(st.lists(st.sampled_from(TOKENS)))
def test_any_markup_keeps_its_words_in_order(tokens):
    words = [token for token in tokens if token in "xy"]
    assert [letter for letter in html_to_text(" ".join(tokens)) if letter in "xy"] == words


def test_depth_is_bounded_whatever_the_stack():
    assert html_to_text("<div>" * (MAX_DEPTH - 1) + "x") == "x"
    for tag in ("b", "div", "blockquote", "ul", "ul><li"):
        with pytest.raises(MarkupError, match=f"more than {MAX_DEPTH} deep"):
            html_to_text(f"<{tag}>" * 3_000 + "x")
