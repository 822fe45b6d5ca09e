"""Rules for how people word the slots of E2E: (field, meaning, regular expression) over normalised text.

The text has lower case, no accents, apostrophes or hyphens, digits for number words, and all money in pounds.
``low|middle`` marks a wording that can mean either.
"""

import re
from collections.abc import Iterator

LEVELS = {
    "priceRange": {
        "low": ("cheap", "less than £20"),
        "middle": ("moderate", "£20-25"),
        "high": ("high", "more than £30"),
    },
    "customer rating": {
        "low": ("low", "1 out of 5"),
        "middle": ("average", "3 out of 5"),
        "high": ("high", "5 out of 5"),
    },
}
MEANING = {
    (field, value): level
    for field, levels in LEVELS.items()
    for level, values in levels.items()
    for value in values
}

LINK = (
    r"(?:(?:is|are|not|isnt|arent|was|were|has|have|been|of|a|an|the|very|quite|rather|fairly|somewhat|pretty|in|on|at|from|as"
    r"|side|range|ranges|level|category|bracket|being|considered|listed|only|just) )*"
)
COST = r"(?:prices?|priced|pricing|price ?ranges?|costs?|costing|priced menu|spending)"
RATING = (
    r"(?:(?:customers?|consumers?|users?|guests?|public|their|its|overall) )?"
    r"(?:ratings?|rated|rates?|reviews?|reviewed|scores?|scored|rankings?|ranked|recommended|satisfaction"
    r"|feedback|approval|opinions?|reputation)"
)
KIDS = r"(?:famil(?:y|ies|ys)|child|children|childrens|kids?)"
WELCOME = (
    r"(?:friendly|friendliness|welcome|welcomed|welcoming|allowed|accepted|permitted|suitable|appropriate"
    r"|oriented|orientated|atmosphere|environment|establishment|venue|eatery"
    r"|place|setting|dining|style|fun|orientation|spot|meals?)"
)
INVITE = (
    r"(?:(?:un)?friendly|suitable|suited|good|great|perfect|ideal|welcom\w+|allow\w*|accept\w*|caters?|catering|fun"
    r"|appropriate|open|bring\w*|recommended|permit\w*|like|place|made|aimed|geared|serves?|for|excludes?)"
)
AVERAGE = rf"(?:average {COST} (?:\w+ ){{0,2}})?"
CENTRE = r"(?:centre|center)"


def _out_of_five(number: str) -> str:
    return rf"(?:{number} ?(?:out of|of|/) ?(?:a possible )?5(?: stars?)?|{number} stars?)(?: {RATING})?"


RULES: list[tuple[str, str, str]] = [
    ("priceRange", "low", r"cheap(?:er|est|ly)?(?! than £)|inexpensive(?:ly)?|low cost|low budget|bargain"),
    ("priceRange", "low", AVERAGE + r"(?:less|lower|cheaper|under|below|no more|up to)(?: then| than)? £?20"),
    ("priceRange", "low", r"£20 (?:or|and) (?:less|under|below|lower)"),
    ("priceRange", "low|middle", r"affordab(?:le|ly)|(?:reasonabl[ey]|fair(?:ly)?|nicely|well|good) " + COST),
    ("priceRange", "low|middle", COST + " " + LINK + r"reasonable"),
    ("priceRange", "middle", r"moderate(?:ly)?|(?:mid|middle|medium) (?:range|ranged|level|tier)"),
    ("priceRange", "middle", AVERAGE + r"£?20 (?:to |and |or )?£?25"),
    ("priceRange", "high", r"expensive(?:ly)?|pricey|pricy|costly|high end|upmarket|upscale"
                           r"|(?:higher than|above) average pric\w+"),
    ("priceRange", "high", AVERAGE + r"(?:more|higher|greater|over|above|upwards?|starts?|starting|excess)"
                           r"(?: than| of| at| from)? £?30"),
    ("priceRange", "high", r"£30(?: (?:and|or|plus)(?: (?:up|upwards?|more|above|over|higher|plus))?)?"),
    ("priceRange", "low|middle", r"(?:less|lower|cheaper|under|below)(?: than)? £30"),
    ("customer rating", "low", _out_of_five("1")),
    ("customer rating", "middle", _out_of_five("3")),
    ("customer rating", "high", _out_of_five("5")),
    ("area", "riverside", r"river(?:side|bank|front| side| bank| front)?|waterfront|waterside"),
    ("area", "city centre", rf"(?:city|citys|town|cities) {CENTRE}|{CENTRE} (?:of )?(?:the )?(?:city|town)"),
    ("area", "city centre", rf"downtown|central(?:ly)?|inner city|{CENTRE} area|(?:in|at|near) the {CENTRE}"),
    ("area", "city centre", r"(?:heart|middle) of (?:the )?(?:city|town)|(?:in|within) (?:the )?city"),
    ("eatType", "pub", r"pubs?|public house"),
    ("eatType", "coffee shop", r"coffee ?(?:shops?|house|bar)|cafe"),
    ("eatType", "restaurant", r"restaurants?"),
    ("food", "Chinese", r"chinese"),
    ("food", "English", r"english|british"),
    ("food", "Fast food", r"fast foods?"),
    ("food", "French", r"french"),
    ("food", "Indian", r"indian"),
    ("food", "Italian", r"italian"),
    ("food", "Japanese", r"japanese|sushi"),
    ("familyFriendly", "no", r"adults?(?: (?:only|friendly|oriented))?|(?:child|kid|family) ?(?:free|less)"),
    ("familyFriendly", "yes", rf"{KIDS}(?: (?:and|or) {KIDS})? (?:(?:are|is|not|arent|isnt|un|non|very|always"
                              rf"|also|a|was|allowed) )*(?:{WELCOME}|unfriendly|unwelcome)"),
    ("familyFriendly", "yes", rf"{INVITE} (?:(?:for|to|of|with|in|at|the|your|all|any|whole|entire|young"
                              rf"|a) )*{KIDS}(?: (?:and|or) {KIDS})?"),
    ("familyFriendly", "yes", r"family friend|family(?= (?:\w+ ){0,2}(?:restaurant|pub|coffee shop|cafe)\b)"),
    ("familyFriendly", "yes", rf"(?:no|without|non|any) {KIDS}"),
]  # fmt: skip


def _levels(field: str, noun: str, low: str, middle: str, high: str) -> Iterator[tuple[str, str, str]]:
    """Rules for "low price", "prices are quite low" and the like, at three levels."""
    for level, words in (("low", low), ("middle", middle), ("high", high)):
        yield field, level, rf"(?:{words}) (?:in |on |end |and |the )?{noun}"
        # "the rating is low" but not "the rating is good and low prices": the adjective may belong further on
        yield (
            field,
            level,
            rf"{noun} (?:(?:it|them|this) )?{LINK}(?:{words})(?! (?:end )?(?:{RATING}|{COST}|food))",
        )


RULES += _levels(
    "priceRange", COST, "lower|lowest|low", "average|medium|mid|middle", "higher|highest|highly|high|premium"
)
RULES += _levels(
    "customer rating",
    RATING,
    "lower|lowest|low|poorly|poor|badly|bad|terrible|negative|1",
    "average|averagely|medium|mid|middle|moderately|moderate|decent|mediocre|ok|okay|3",
    "higher|highest|highly|high|excellent|top|greatly|great|well|good|outstanding|fantastic|superb|positive|5",
)
COMPILED = [(field, meaning, re.compile(rf"(?<!\w)(?:{rule})(?!\w)")) for field, meaning, rule in RULES]
