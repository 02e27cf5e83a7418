"""Which images of one data set may show the object of another set's class although no mask says so.

Checked by eye, set by set: a car of one set is found on another set's street, and rightly so. Such pairs are no test of
absence. Names that are not here, of data sets of one's own, are strangers to each other.
"""

from collections.abc import Mapping

THINGS: Mapping[str, frozenset[str]] = {
    "person": frozenset(
        {"person", "pedestrian", "bicyclist", "dance_twirl", "kite_surf", "paragliding_launch", "parkour", "feet"}
    ),
    "vehicle": frozenset({"car", "car_roundabout", "drift_chicane", "soapbox", "fire_truck"}),
    "building": frozenset({"building", "facade", "shop", "window", "balcony_fence"}),
    "fence": frozenset({"fence", "balcony_fence"}),
    "ground": frozenset({"pavement", "street"}),
    "sign": frozenset({"sign_symbol"}),
    "plant": frozenset({"tree", "potted_plant", "leaf", "leaf_lesion"}),
    "crack": frozenset({"crack", "tile_crack", "tile_gray_stroke", "scratches"}),
    "rust": frozenset({"corrosion", "patches", "inclusion"}),
    "pet": frozenset({"dog", "cat"}),
    "bird": frozenset({"bird", "blackswan"}),
    "cattle": frozenset({"cow", "goat"}),
    "tableware": frozenset({"bottle", "cup", "wine_glass"}),
    "food": frozenset({"apple", "strawberry", "banana", "broccoli", "pizza", "sandwich"}),
    "room": frozenset({"ac_remote", "bed", "refrigerator"}),
    "workwear": frozenset({"helmet", "safety_vest"}),
    "umbrella": frozenset({"umbrella"}),
}
"""Kind of thing -> names of classes that show it."""

MAY_SHOW: Mapping[str, tuple[str, ...]] = {
    "camvid": ("person", "vehicle", "building", "fence", "ground", "sign", "plant", "crack", "workwear", "umbrella"),
    "coco_mini": (
        "person", "vehicle", "building", "fence", "ground", "sign", "plant", "pet", "bird", "cattle", "tableware",
        "food", "room",
    ),
    "coffee_leaf": ("plant",),
    "davis_video": (
        "person", "vehicle", "building", "fence", "ground", "sign", "plant", "crack", "pet", "bird", "cattle",
        "workwear", "umbrella",
    ),
    "facade": ("person", "vehicle", "building", "fence", "ground", "sign", "plant", "crack", "umbrella"),
    "fss_mini": ("person", "building", "fence", "plant", "food", "cattle"),
    "mvtec_mini": ("crack", "rust"),
    "nuclei": (),
    "road_crack": ("ground", "crack"),
    "steel_strip": ("crack", "rust"),
    "via_objects": (
        "person", "vehicle", "building", "fence", "ground", "sign", "plant", "crack", "rust", "pet", "tableware",
        "room", "workwear",
    ),
}  # fmt: skip
"""Set -> kinds of things that its images show or may show."""


def may_show(set_name: str, class_name: str) -> bool:
    """Return whether images of a set may show the object of a class of another set."""
    return any(class_name in THINGS[thing] for thing in MAY_SHOW.get(set_name, ()))
