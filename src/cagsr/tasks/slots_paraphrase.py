"""Task ``slots-paraphrase``: describe a shop's article; every value is said in other words than the prompt's.

No word of any prompt can occur in any response, so word overlap is blind here by construction: a reward that
ranks these responses must know what the words mean. Every phrase belongs to one value, and none is part of
another, so the checker is exact.
"""

from cagsr.tasks.description import Description, Field

FIELDS = {
    "colour": Field(
        ("looks {}", "comes out {}", "gleams {}"),
        {
            "red": ("scarlet", "like ripe cherries", "ruby toned"),
            "blue": ("navy", "like a cloudless sky", "sapphire toned"),
            "green": ("emerald", "like fresh grass", "mossy"),
            "black": ("ebony", "like midnight", "sooty"),
            "white": ("ivory", "like snow", "milky"),
            "yellow": ("golden", "like lemons", "sunny"),
        },
    ),
    "material": Field(
        ("is made of {}", "is built from {}", "consists of {}"),
        {
            "leather": ("tanned hide", "supple cowskin"),
            "cotton": ("soft canvas", "woven plant fibre"),
            "wool": ("sheep fleece", "knitted yarn"),
            "steel": ("forged metal", "stainless alloy"),
            "wood": ("carved oak", "polished timber"),
            "glass": ("cut crystal", "blown silica"),
        },
    ),
    "size": Field(
        ("stands {}", "measures {}", "turns out {}"),
        {
            "tiny": ("thumb long", "hardly visible"),
            "small": ("palm wide", "rather compact"),
            "medium": ("knee high", "of average height"),
            "large": ("as tall as a door", "quite roomy"),
            "huge": ("truck sized", "truly massive"),
            "slim": ("pencil thin", "very narrow"),
        },
    ),
    "price": Field(
        ("sells for {}", "goes for {}", "asks for {}"),
        {
            "cheap": ("a few coins", "pocket money"),
            "fair": ("an honest sum", "what everybody pays"),
            "costly": ("a hefty bill", "three months of savings"),
            "luxury": ("a royal fortune", "millionaires only"),
            "free": ("nothing at all", "zero pennies"),
            "reduced": ("half the usual amount", "a bargain rate"),
        },
    ),
    "origin": Field(
        ("hails from {}", "is shipped from {}", "arrives from {}"),
        {
            "france": ("paris", "the banks of the seine"),
            "italy": ("rome", "a tuscan village"),
            "japan": ("tokyo", "the foot of fuji"),
            "india": ("delhi", "the shores of the ganges"),
            "brazil": ("rio", "the amazon basin"),
            "egypt": ("cairo", "the land of pharaohs"),
        },
    ),
    "condition": Field(
        ("appears {}", "is offered {}", "seems {}"),
        {
            "new": ("freshly unpacked", "never touched"),
            "used": ("second hand", "owned before"),
            "worn": ("faded by years", "threadbare"),
            "broken": ("cracked", "in need of mending"),
            "restored": ("lovingly patched", "as good as ever"),
            "antique": ("a century old", "handed down by ancestors"),
        },
    ),
    "audience": Field(
        ("suits {}", "serves {}", "delights {}"),
        {
            "children": ("boys and girls", "kids"),
            "students": ("pupils", "young scholars"),
            "travellers": ("people on the road", "globetrotters"),
            "cooks": ("kitchen chefs", "those who bake"),
            "doctors": ("surgeons", "hospital staff"),
            "musicians": ("pianists", "band players"),
        },
    ),
    "feature": Field(
        ("can {}", "will {}", "is able to {}"),
        {
            "folding": ("collapse flat", "bend double"),
            "waterproof": ("stay dry in rain", "keep out every drop"),
            "silent": ("run without a sound", "avoid any noise"),
            "glowing": ("shine at night", "light up dark rooms"),
            "magnetic": ("cling to iron", "stick to the fridge"),
            "scented": ("smell of roses", "spread a sweet perfume"),
        },
    ),
}

SLOTS_PARAPHRASE = Description(
    name="slots-paraphrase",
    fields=FIELDS,
    subjects=("this piece", "our article", "the item"),
    pronouns=("it", "it also"),
    shares=(0.5, 0.85, 0.1),
)
