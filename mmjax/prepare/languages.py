"""Rule-based language identification from scripts, function words and letters.

Tuned to detect texts in a language that the user did not ask for. Texts without evidence, such as names, numbers and
single words, are not classified.
"""

from __future__ import annotations

import collections
import functools
import re
import unicodedata

# Languages of each script. Function words distinguish languages that share a script.
_SCRIPTS = {
    "CYRILLIC": ("ru", "uk"),
    "GREEK": ("el",),
    "ARABIC": ("ar", "fa"),
    "HEBREW": ("he",),
    "DEVANAGARI": ("hi",),
    "BENGALI": ("bn",),
    "TAMIL": ("ta",),
    "THAI": ("th",),
    "HANGUL": ("ko",),
    "HIRAGANA": ("ja",),
    "KATAKANA": ("ja",),
    "CJK": ("ja",),
    "HAN": ("zh",),
}
_ALPHABETS = ("CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "BENGALI", "TAMIL", "THAI")

# Most frequent words of each language. A word shared by several languages has less weight for each.
_WORDS = {
    "en": "the of and to in is that it was for on are as with his they at be this from have or by one had not "
    "but what all were we when your can said there use an each which she do how their if will up other "
    "about out many then them these so some her would make like him into time has two more no way could "
    "my than been its who did get may a i you he me where does over near under between while very just "
    "also any our us here now off down after before",
    "de": "der die das und in den von zu mit sich des auf für ist im dem nicht ein eine als auch es an werden "
    "aus er hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur "
    "oder aber vor zur bis mehr durch man sein wurde sei ich du wir ihr mir mich dich uns euch kein "
    "keine was wer wo warum wenn dann doch schon sehr hier dort unter zwischen ihre seine diese dieser "
    "dieses gegen ohne mein dein",
    "fr": "le la les de des du un une et est en que qui dans pour pas au aux ce cette ces il elle ils elles "
    "on nous vous je tu ne se sur avec plus par mais ou où son sa ses leur leurs mon ma mes ton été "
    "sont être avoir ont fait comme tout tous bien très sans sous entre chez aussi même deux alors donc "
    "quand était y si peut c'est d'un d'une l'on",
    "es": "el la los las de del un una unos y en que es por para con no se su sus lo al más como pero le ha "
    "me sin sobre este esta ya entre cuando todo ser son dos también fue había era muy años hasta desde "
    "está mi porque qué sólo han yo hay vez puede todos así nos ni parte tiene uno donde bien mismo ese "
    "ahora cada otro después te eso tu ella él",
    "it": "il lo la i gli le di del della dei delle un una uno e è in che per con non si su al alla da dal "
    "dalla sono ha come più ma anche se nel nella questo questa suo sua suoi loro era essere ho hanno "
    "molto tutto tutti due dove chi cosa perché quando ci mi ti noi voi io tu lui lei senza sotto tra "
    "fra dopo prima così ancora già sulla sul",
    "pt": "o os a as de do da dos das um uma e em no na nos nas que é por para com não se seu sua mais como "
    "mas ao à foi ele ela eles são tem ser está muito já também só pelo pela até isso este esta esse "
    "essa eu nós você meu minha quando onde entre depois sem mesmo aos seus quem havia era há fazer "
    "sobre dois ou lhe você",
    "nl": "de het een en van in is dat op te zijn met voor niet aan er om ook als dan maar bij of door over "
    "uit nog naar hij zij ze we wij je jij ik mijn was werd wordt heeft hebben had kan zou deze dit die "
    "geen meer wel tot al veel hun haar wat wie waar hoe onder tussen tegen zeer na onze worden moet",
    "sv": "och att det i en som är på för med av till den har de inte om ett han men var jag sig från vi så "
    "kan när år säger hon under också efter eller nu sin där vid mot ska skulle kommer ut får finns "
    "vara hade alla andra mycket än här då över inga ingen mellan utan du dig mig",
    "da": "og at det i en som er på for med af til den har de ikke om et han men var jeg sig fra vi så kan "
    "når år hun under også efter eller nu sin der ved mod skal skulle kommer ud får være havde alle "
    "andre meget end her da over ingen mellem uden du dig mig blev hvor",
    "pl": "i w na z do nie się że to jest o jak za od po przez ale co tak dla już czy być był była było może "
    "ich jego jej tylko ma które który która ten ta te tego tym pod przed przy gdy oraz także bardzo są "
    "mnie ja ty my wy on ona",
    "cs": "a v na se je že s z do o i to jako za by ale po jsou k jeho od pro který která které při už jen "
    "nebo tak být byl byla bylo má ve ze si není také jak aby podle až když mezi pod nad před jsem jsme "
    "velmi",
    "fi": "ja on ei se että oli hän mutta ovat joka mitä myös kun niin kuin tai sen hänen olla ole jos sitten "
    "vain nyt minä sinä me te he tämä mikä missä kanssa jo vielä ennen alla välillä ilman paljon hyvin "
    "oma",
    "tr": "ve bir bu da de için ile çok ne daha gibi olan en kadar var ama sonra o mi her ben sen biz siz "
    "onlar değil olarak ya mı ki şey iki arasında altında üzerinde yok ise hiç nasıl neden burada",
    "ro": "și de la în a cu pe nu este o să se un că din mai care pentru sunt ca fi dar au al ale lui ei cel "
    "ce sau după fost când foarte sub între fără prin era acest această acestea unde",
    "id": "yang dan di itu dengan untuk tidak ini dari dalam akan pada juga saya ke karena ada mereka kita "
    "bisa sudah atau oleh seperti lebih telah dapat kami adalah anda sebuah orang hanya antara bawah",
    "vi": "và của là có không cho được một trong với các những này đó người đã khi từ về cũng như nhưng đến "
    "để ra tôi bạn chúng ở trên dưới rất",
    "ru": "и в не на что он с как это по но она они к у же вы за бы от мы так его из то я для ее была был "
    "было быть или уже если когда где очень под между без над при еще нет",
    "uk": "і в не на що він з як це та але вона вони до у ж ви за би від ми так його із то я для її була був "
    "було бути або вже якщо коли де дуже під між без над при ще немає є",
}

# Languages of each distinctive letter.
_LETTERS = {
    "ß": "de", "ä": "de fi sv", "ö": "de fi sv tr", "ü": "de tr", "ñ": "es", "¿": "es", "¡": "es", "ã": "pt", "õ": "pt",
    "ç": "fr pt tr", "é": "fr es pt it", "è": "fr it", "ê": "fr pt", "à": "fr it pt", "ò": "it", "ù": "it fr",
    "œ": "fr",
    "ł": "pl", "ą": "pl", "ę": "pl", "ś": "pl", "ż": "pl", "ź": "pl", "ć": "pl", "ń": "pl", "ó": "es pl pt",
    "ř": "cs", "ě": "cs", "ů": "cs", "š": "cs", "č": "cs", "ž": "cs", "ý": "cs", "á": "es pt cs", "í": "es pt cs",
    "å": "sv da", "ø": "da", "æ": "da", "ğ": "tr", "ş": "tr", "ı": "tr", "ă": "ro vi", "ș": "ro", "ț": "ro", "đ": "vi",
    "ơ": "vi", "ư": "vi", "і": "uk", "ї": "uk", "є": "uk", "ы": "ru", "э": "ru", "ё": "ru",
}  # fmt: skip

LANGUAGES = tuple(sorted({*_WORDS, *(language for several in _SCRIPTS.values() for language in several)}))
"""Supported languages, ISO 639-1 codes."""


def detect_unwanted_language(text: str, wanted: tuple[str, ...]) -> str | None:
    """Identifies the language of a text that is in none of the wanted languages.

    A word of a wanted language is evidence for it. Words, letters and scripts that occur only in other languages are
    evidence against it. At least two words, or a word and a letter, are required.

    Args:
      text: text to classify.
      wanted: ISO 639-1 codes.

    Returns:
      An ISO 639-1 code; None if the text is in a wanted language or the evidence is insufficient.
    """
    unwanted_score, wanted_score = 0.0, 0.0
    scores: collections.Counter = collections.Counter()
    scripts = collections.Counter(_script(letter) for letter in text if letter.isalpha())
    if not scripts["HIRAGANA"] + scripts["KATAKANA"]:
        scripts["HAN"] = scripts.pop("CJK", 0)
    for script, count in scripts.items():
        if languages := _SCRIPTS.get(script):
            # In alphabetic scripts, three letters count like one word.
            if not set(languages) & set(wanted):
                unwanted_score += count / 3 if script in _ALPHABETS else count
            scores.update(dict.fromkeys(languages, count / len(languages)))
    for word in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.lower()):
        if common := _word_languages().get(word):
            is_wanted = bool(set(common) & set(wanted))
            wanted_score, unwanted_score = wanted_score + is_wanted, unwanted_score + (not is_wanted)
            scores.update(dict.fromkeys(common, 1 / len(common)))
    for letter in set(text.lower()):
        owners = _LETTERS.get(letter, "").split()
        if owners and not set(owners) & set(wanted):
            unwanted_score += 1
            scores.update(dict.fromkeys(owners, 1 / len(owners)))
    others = {language: score for language, score in scores.items() if language not in wanted}
    is_unwanted = unwanted_score >= 2 and unwanted_score > 1.5 * wanted_score
    return max(sorted(others), key=others.__getitem__) if is_unwanted else None


@functools.lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    """Returns the first word of a letter's Unicode name, for example "LATIN"."""
    return unicodedata.name(letter, "?").split()[0].split("-")[0]


@functools.cache
def _word_languages() -> dict[str, list[str]]:
    """Inverts `_WORDS` to {word: languages}."""
    languages = collections.defaultdict(list)
    for language, words in _WORDS.items():
        for word in dict.fromkeys(words.split()):
            languages[word].append(language)
    return dict(languages)
