"""The closed vocabulary of the generated tasks: everyday words.

Each is in one class only, so that an answer is never ambiguous.
"""

# fmt: off
CATEGORIES: dict[str, tuple[str, ...]] = {
    "animal": ("cat", "dog", "horse", "cow", "pig", "hen", "fox", "bear", "wolf", "goat"),
    "tool": ("hammer", "saw", "drill", "axe", "spade", "brush", "rake", "pliers", "chisel",
             "wrench"),
    "food": ("bread", "rice", "soup", "cake", "cheese", "apple", "honey", "plum", "bean", "pie"),
    "garment": ("coat", "hat", "shoe", "sock", "shirt", "glove", "belt", "scarf", "dress", "boot"),
    "vehicle": ("car", "bus", "train", "boat", "bike", "truck", "ship", "tram", "plane", "van"),
    "plant": ("rose", "oak", "tulip", "fern", "pine", "grass", "ivy", "lily", "moss", "palm"),
}
NOUNS = tuple(noun for nouns in CATEGORIES.values() for noun in nouns)
LABELS = ("moon", "star", "river", "stone", "cloud", "fire", "snow", "gold", "iron", "glass",
          "north", "south", "east", "west", "spring", "winter")
NAMES = ("Anna", "Tom", "Mira", "Leo", "Nora", "Omar", "Paul", "Rosa", "Sven", "Lena", "Hugo",
         "Ada", "Max", "Eva", "Finn", "Lucy", "Karl", "Nina", "Igor", "Ben")
CITIES = ("Oslo", "Paris", "Rome", "Berlin", "Madrid", "Cairo", "Lima", "Tokyo", "Delhi",
          "Boston", "Dublin", "Vienna")
COLOURS = ("red", "blue", "green", "black", "white", "yellow", "brown", "pink")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve")
JOINERS = {"comma": ", ", "dash": " - ", "slash": " / ", "plus": " + ", "star": " * ",
           "colon": ": "}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
HOURS = ("noon", "midnight", "dawn", "dusk", "sunset", "sunrise", "lunchtime", "teatime")
PLACES = ("barn", "garden", "library", "kitchen", "cellar", "attic", "tower", "hall", "stable",
          "chapel")
ITEMS = ("lamp", "chair", "book", "drum", "candle", "ladder", "rope", "basket", "pillow", "mirror")
EVENTS = ("picnic", "concert", "wedding", "lecture", "party", "race", "fair", "dance", "feast",
          "parade")
