"""Language identification: right on texts of many languages, code left alone, and counted."""

from collections.abc import Callable

import pyarrow as pa
import pytest

from llmctl.config.clean import CleanConfig
from llmctl.config.clean_steps import LanguageConfig
from llmctl.data.clean import run
from llmctl.data.clean.language import Language
from llmctl.data.tables import DOCUMENTS, documents_schema, extra_columns
from tests.data.conftest import rows_of

TEXTS = {  # written for this test
    "en": "The small bakery at the corner opens before sunrise. By the time the first commuters walk past, the smell of "
    "fresh bread has already filled the street, and the owner greets everyone by name while she wraps the rolls.",
    "de": "Die kleine Bäckerei an der Ecke öffnet vor Sonnenaufgang. Wenn die ersten Pendler vorbeigehen, liegt der Duft "
    "von frischem Brot schon in der Straße, und die Besitzerin grüßt jeden mit Namen, während sie die Brötchen einpackt.",
    "fr": "La petite boulangerie du coin ouvre avant le lever du soleil. Quand les premiers voyageurs passent, l'odeur du "
    "pain frais remplit déjà la rue, et la patronne salue chacun par son nom pendant qu'elle emballe les petits pains.",
    "es": "La pequeña panadería de la esquina abre antes del amanecer. Cuando pasan los primeros viajeros, el olor del pan "
    "recién hecho ya llena la calle, y la dueña saluda a cada uno por su nombre mientras envuelve los panecillos.",
    "it": "Il piccolo panificio all'angolo apre prima dell'alba. Quando passano i primi pendolari, il profumo del pane "
    "fresco riempie già la strada, e la proprietaria saluta tutti per nome mentre incarta i panini ancora caldi.",
    "pt": "A pequena padaria da esquina abre antes do nascer do sol. Quando passam os primeiros viajantes, o cheiro do pão "
    "fresco já enche a rua, e a dona cumprimenta cada um pelo nome enquanto embrulha os pãezinhos ainda quentes.",
    "nl": "De kleine bakkerij op de hoek gaat open voor zonsopgang. Wanneer de eerste reizigers voorbijlopen, hangt de geur "
    "van vers brood al in de straat, en de eigenares begroet iedereen bij naam terwijl ze de broodjes inpakt.",
    "sv": "Det lilla bageriet på hörnet öppnar före soluppgången. När de första pendlarna går förbi fyller doften av "
    "nybakat bröd redan gatan, och ägaren hälsar på alla vid namn medan hon slår in de varma bullarna i papper.",
    "pl": "Mała piekarnia na rogu otwiera się przed wschodem słońca. Kiedy przechodzą pierwsi podróżni, zapach świeżego "
    "chleba wypełnia już ulicę, a właścicielka wita każdego po imieniu, zawijając ciepłe bułki w papier.",
    "cs": "Malá pekárna na rohu otevírá před východem slunce. Když kolem procházejí první cestující, vůně čerstvého chleba "
    "už naplňuje ulici a majitelka zdraví každého jménem, zatímco balí ještě teplé housky do papíru.",
    "fi": "Kulman pieni leipomo avataan ennen auringonnousua. Kun ensimmäiset työmatkalaiset kävelevät ohi, tuoreen leivän "
    "tuoksu täyttää jo kadun, ja omistaja tervehtii jokaista nimeltä samalla kun hän käärii sämpylöitä paperiin.",
    "hu": "A sarki kis pékség napkelte előtt nyit. Mire az első ingázók elsétálnak előtte, a friss kenyér illata már "
    "betölti az utcát, és a tulajdonos mindenkit a nevén köszönt, miközben becsomagolja a még meleg zsemléket.",
    "tr": "Köşedeki küçük fırın güneş doğmadan açılır. İlk yolcular önünden geçerken taze ekmeğin kokusu çoktan sokağı "
    "doldurmuş olur ve dükkânın sahibi sıcak poğaçaları sararken herkesi adıyla selamlar, hâlini hatırını sorar.",
    "ru": "Маленькая пекарня на углу открывается до восхода солнца. Когда мимо проходят первые прохожие, запах свежего "
    "хлеба уже наполняет улицу, и хозяйка приветствует каждого по имени, заворачивая ещё тёплые булочки в бумагу.",
    "uk": "Маленька пекарня на розі відчиняється до сходу сонця. Коли повз неї йдуть перші перехожі, запах свіжого хліба "
    "вже наповнює вулицю, і господиня вітає кожного на ім'я, загортаючи ще теплі булочки в папір.",
    "el": "Ο μικρός φούρνος στη γωνία ανοίγει πριν από την ανατολή του ήλιου. Όταν περνούν οι πρώτοι ταξιδιώτες, η μυρωδιά "
    "του φρέσκου ψωμιού γεμίζει ήδη τον δρόμο και η ιδιοκτήτρια χαιρετά τον καθένα με το όνομά του.",
    "ar": "يفتح المخبز الصغير في الزاوية أبوابه قبل شروق الشمس. وعندما يمر أول المسافرين تكون رائحة الخبز الطازج قد ملأت "
    "الشارع، وتحيي صاحبة المخبز كل واحد منهم باسمه وهي تلف الخبز الساخن في الورق، ثم تعود إلى الفرن لتخرج الدفعة التالية.",
    "hi": "कोने की छोटी बेकरी सूरज निकलने से पहले खुल जाती है। जब पहले यात्री वहाँ से गुज़रते हैं तब तक ताज़ी रोटी की खुशबू पूरी "
    "सड़क पर फैल चुकी होती है, और मालकिन गरम रोटियाँ कागज़ में लपेटते हुए हर किसी का नाम लेकर स्वागत करती है।",
    "ja": "角の小さなパン屋は日の出前に開きます。最初の通勤客が通り過ぎるころには、焼きたてのパンの香りがもう通りいっぱいに広がっていて、"
    "店主は温かい丸パンを紙に包みながら、一人一人に名前で挨拶をします。雨の日も雪の日も、店の明かりが消えていることはありません。"
    "子どもたちは学校へ行く途中に立ち寄り、窓に顔を寄せて、どれにしようかと長い間迷っています。常連のお年寄りは椅子に座り、"
    "新聞を読みながら、昔この町がどんなふうだったかを話してくれます。",
    "zh": "街角的小面包店在日出之前就开门了。当第一批上班的人走过时，新鲜面包的香味已经弥漫了整条街，店主一边用纸包着还热的小面包，"
    "一边叫着每个人的名字打招呼。无论下雨还是下雪，店里的灯总是亮着。孩子们在上学的路上停下来，把脸贴在窗户上，想了很久要买哪一个。"
    "常来的老人坐在椅子上，一边看报纸，一边讲这座小城从前的样子。下午的时候，客人少了，店主就把剩下的面包送给附近的邻居，"
    "然后开始准备第二天要用的面粉和酵母。",
    "ko": "모퉁이의 작은 빵집은 해가 뜨기 전에 문을 엽니다. 첫 출근길 사람들이 지나갈 때쯤이면 갓 구운 빵 냄새가 이미 거리를 가득 채우고, "
    "주인은 따뜻한 빵을 종이에 싸면서 한 사람 한 사람의 이름을 부르며 인사합니다. 비가 오나 눈이 오나 가게의 불은 늘 켜져 있고, "
    "아이들은 학교 가는 길에 들러 창문에 얼굴을 대고 무엇을 살지 오래 고민합니다. 단골 노인들은 의자에 앉아 신문을 읽습니다.",
    "vi": "Tiệm bánh nhỏ ở góc phố mở cửa trước khi mặt trời mọc. Khi những người đi làm đầu tiên bước qua, mùi bánh mì mới "
    "đã lan khắp con đường, và bà chủ chào từng người bằng tên trong lúc gói những ổ bánh còn nóng vào giấy.",
}


def batch_of(texts: list[str], lang: str = "") -> pa.RecordBatch:
    rows = [
        {**dict.fromkeys(DOCUMENTS.names, ""), "id": str(n), "text": text, "lang": lang} for n, text in enumerate(texts)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=DOCUMENTS)


def test_documents_over_200_characters_are_named_rightly() -> None:
    """Above 98 %: of whole texts, and of every cut of 200 characters. bench/language.py measures more languages."""
    assert all(len(text) > 190 for text in TEXTS.values())
    cuts = [
        (code, text[start : start + 200])
        for code, text in TEXTS.items()
        for start in range(0, max(1, len(text) - 199), 25)
    ]
    named = Language(LanguageConfig(identify=True))(batch_of([text for _, text in cuts]))
    right = [code == lang for (code, _), lang in zip(cuts, named.column("lang").to_pylist(), strict=True)]
    assert sum(right) / len(right) > 0.98
    whole = Language(LanguageConfig(identify=True))(batch_of(list(TEXTS.values())))
    assert whole.column("lang").to_pylist() == list(TEXTS)
    assert min(whole.column("lang_score").to_pylist()) > 0.65
    assert whole.schema.names == [*documents_schema(["lang_score"]).names, "reason", "value"]


def test_unwanted_and_uncertain_languages_are_dropped() -> None:
    kernel = Language(LanguageConfig.model_validate({"keep": "en, de"}))
    judged = kernel(batch_of([TEXTS["en"], TEXTS["de"], TEXTS["fr"], "ok 12", ""]))
    assert judged.column("reason").to_pylist() == [None, None, "language", "language", "language"]
    assert judged.column("value").to_pylist()[2] == judged.column("lang_score").to_pylist()[2] > 0.9
    assert judged.column("value").to_pylist()[4] < 0.65


def test_code_is_left_alone() -> None:
    judged = Language(LanguageConfig(keep=("de",)))(batch_of(["def f(): return 1"], lang="python"))
    assert judged.column("lang").to_pylist() == ["python"]
    assert judged.column("lang_score").to_pylist() == [None]
    assert judged.column("reason").to_pylist() == [None]
    named_by_its_source = Language(LanguageConfig(keep=("de",)))(batch_of([TEXTS["de"]], lang="de-AT"))
    assert named_by_its_source.column("lang").to_pylist() == ["de"]


def test_the_score_is_a_column_that_later_stages_may_ignore(documents: Callable, stage: Callable) -> None:
    from llmctl.config.dedup import DedupConfig
    from llmctl.data.dedup import run as dedup

    off = {"quality": {"enabled": False}, "repetition": {"enabled": False}}
    given = documents([{"id": code, "text": text} for code, text in TEXTS.items()])
    product, artifact = stage(run, CleanConfig(language={"keep": "en,de,ja"}, keep_rejected=True, **off), given)
    assert {row["id"]: row["lang"] for row in rows_of(artifact)} == {"en": "en", "de": "de", "ja": "ja"}
    assert all(0.65 <= row["lang_score"] <= 1 for row in rows_of(artifact))
    assert product.totals["dropped.language"] == len(TEXTS) - 3
    assert {row["lang"] for row in rows_of(artifact, "rejected")} == set(TEXTS) - {"en", "de", "ja"}
    assert extra_columns(artifact) == ["lang_score"]
    again, second = stage(run, CleanConfig(**off), artifact)  # a second clean keeps it
    assert [row["lang_score"] for row in rows_of(second)] == [row["lang_score"] for row in rows_of(artifact)]
    assert again.totals["rows_digest"] == product.totals["rows_digest"]
    _, deduped = stage(dedup, DedupConfig(), artifact)
    assert {row["id"] for row in rows_of(deduped)} == {"en", "de", "ja"}


@pytest.mark.parametrize("text", ["\0" * 1000, "\u202e" * 1000, "a" * 1_000_000, "\n\n", "👩\u200d👩\u200d👧" * 50])
def test_odd_texts_have_some_language(text: str) -> None:
    assert 0 <= Language(LanguageConfig(identify=True))(batch_of([text])).column("lang_score").to_pylist()[0] <= 1
