"""The guard: like questions that differ in a fact are told apart, other words for the same are let through."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from importlib import resources
from itertools import combinations, cycle, product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedsmith.artifacts import fingerprint
from embedsmith.cache import guard
from embedsmith.cache.guard import find_veto, fingerprint_rules, read_framing, view_question
from embedsmith.facts import find_changes
from embedsmith.lexicon import find_flip, stem
from embedsmith.wishes import read_wishes

DECIDED = ("7-fdc6c18d62604257", "975e81a377091f65")
TRAPS = [
    ("how do i raise my card limit", "how do i lower my card limit", "opposite"),
    ("can I fly with a cold", "can I not fly with a cold", "negation"),
    ("what is the fee after 30 days", "what is the fee after 60 days", "number"),
    ("is the pool open at 9 am", "is the pool open at 9 pm", "number"),
    ("what is 15% off 80 euros", "what is 80% off 15 euros", "number"),
    ("what is 15 divided by 80", "what is 80 divided by 15", "order"),
    ("port my number from vodafone to o2", "port my number from o2 to vodafone", "order"),
    ("move money from savings to checking", "how can I move money from checking to savings", "order"),
    ("convert euros to dollars", "how to convert dollars to euros", "order"),
    ("how do I get from leeds to york by train", "how can I get to leeds from york by train", "order"),
    ("should I eat before training", "is it better to train before eating", "order"),
    ("is a civic bigger than a golf", "is a golf bigger than a civic please", "order"),
    ("does the dog bite the man", "can the man bite the dog", "order"),
    ("is it better to buy a tablet or notebook", "is it better to buy a tablet or laptop", "word"),
    ("What is 5!", "What is 5", "sign"),
    ("what is 5 + 3", "what is 5 - 3", "sign"),
    ("is it open at -5 degrees", "is it open at 5 degrees", "sign"),
    ("what is 10²", "what is 102", "number"),
    ("what is 2½", "what is 21/2", "number"),
    ("ASCII code of A", "ascii code of a", "letter"),
    ("What are the symptoms of hepatitis A?", "What are the symptoms of hepatitis B?", "letter"),
    ("what does vitamin a do", "what does vitamin d do", "letter"),
    ("what does Medicare Part A cover", "what does Medicare Part B of them cover", "letter"),
    ("who is he", "who is she", "opposite"),
    ("when does my fixed price tariff stop?", "When does my variable tariff end?", "opposite"),
    ("does a landlord pay for a broken boiler", "must the tenant pay for a broken boiler", "opposite"),
    ("怎么开通账户", "怎么关闭账户", "opposite"),
    ("我可以退款吗", "我不可以退款吗", "negation"),
    ("北京的天气怎么样", "上海的天气怎么样", "word"),
    ("退款需要30天吗", "退款需要60天吗", "number"),
    ("从北京到上海的车票", "从上海到北京的车票", "order"),
    ("口座を開設するには", "口座を解約するには", "word"),
    ("カードが使えるのはなぜですか", "カードが使えないのはなぜですか", "negation"),
    ("ドルを円に両替したい", "円をドルに両替したい", "order"),
    ("月曜日の営業時間", "日曜日の営業時間", "word"),
    ("알림을 켜는 방법", "알림 끄는 법 좀 알려주세요", "opposite"),
    ("쿠폰을 쓸 수 있는 매장이 어디예요", "쿠폰을 못 쓰는 매장은 어디인가요", "negation"),
    ("왜 환불할 수 없나요", "왜 환불할 수 있나요", "negation"),
    ("주차는 두 시간까지 무료인가요", "3시간 주차가 무료예요?", "number"),
    ("출발 전 환불은 얼마인가요", "출발 후에 환불하면 얼마예요", "opposite"),
    ("월 5만원 이상 쓰면 얼마예요", "월 5만 원 미만이면 얼마인가요", "opposite"),
    ("인천에서 제주까지 얼마예요", "제주에서 인천까지는 얼마인가요", "order"),
    ("강아지가 사람을 무나요", "사람이 강아지를 무나요", "order"),
    ("is the office shut on friday", "is the office open on friday", "word"),
    ("what is the present tax rate", "what is the gift tax rate", "word"),
    ("where can I shop groceries", "where can I store groceries", "word"),
    ("เปิดบัญชีอย่างไร", "ปิดบัญชีอย่างไร", "word"),
    ("เปิด 30", "ปิด 30", "word"),
    ("for x in y:\n    a()\n    b()", "for x in y:\n    a()\nb()", "layout"),
    ("?", "...", "word"),
    ("cheapest hotel in leeds on friday", "cheapest hotel in york on friday", "word"),
    ("How long is 1.5 hours in the sun safe?", "How long is 3 hours in the sun safe?", "number"),
    ("Do I need a visa for Japan?", "Do I want a visa for Japan?", "word"),
    ("I need help to raise a child", "I need money to raise a child", "word"),
    ("I want to ask my boss about holidays", "I want to tell my boss about holidays", "word"),
    ("What is the best way to settle in Canada?", "What is the fastest way to settle in Canada?", "word"),
    ("the way to Rome by train", "the guide to Rome by train", "word"),
    ("Was muss ich tun nach einem Unfall", "Was kann ich tun nach einem Unfall", "word"),
    ("Dear Prudence chords", "Hey Prudence chords", "word"),
    ("Is it the right way to the airport?", "Is it the right train to the airport?", "word"),
    ("How do I show my screen in a call?", "How do I hide my screen in a call?", "word"),
    ("I want to pay by card in Spain", "the way to pay by cheque in Spain", "word"),
    ("Wann kann ich mein Paket abholen?", "Wo kann ich mein Paket abholen?", "word"),
    ("¿Puedo pagar la multa con tarjeta?", "¿Debo pagar la multa con tarjeta?", "word"),
    ("is it safe for children under 5", "is it safe for children over 5", "opposite"),
    ("what are your opening hours this week", "what are your opening hours next week", "word"),
    ("what was my bill last month", "what is my bill this month", "word"),
    ("is the office closed this friday", "is the office closed next friday", "word"),
    ("how far did sales fall last quarter", "how far do sales fall this quarter", "word"),
    ("Is the pier open in March?", "Is the pier open in May?", "word"),
    ("what are 20 lbs in the other unit", "what are 20 kg in the other unit", "number"),
    ("why is it charging at 3.6kw not 7kw", "why is it charging at 3.6kw not 7mw", "number"),
    ("may I send 5 kg", "may I send 5 bags", "word"),
    ("Is a bonus of $1,000 taxed?", "taxes on 1,000,000 as a gift", "number"),
    ("How do I move house?", "How do I move house? Answer in Spanish.", "wish"),
    ("Wie ziehe ich um? Auf Englisch bitte.", "Wie ziehe ich um?", "wish"),
    ("Explain the lease in Italian", "Explain the lease in Dutch", "wish"),
    ("What is a lease? JSON only", "What is a lease? As a table.", "wish"),
    ("What is a lease, in short?", "What is a lease, in detail?", "wish"),
    ("What is a lease? In 50 words.", "What is a lease? In two sentences.", "wish"),
    ("Explain a lease to a child", "Explain a lease", "wish"),
    ("Explain a lease briefly", "Explain a lease", "wish"),
    ("什么是押金？请用英文回答", "什么是押金？", "wish"),
    ("敷金とは？", "敷金とは？英語で答えてください", "wish"),
    ("Is a 3 mA leak normal?", "Is a 3 MA leak normal?", "number"),
    ("Is 3 mw normal?", "Are 3 MW normal?", "number"),
    ("Is 20 Mb/s enough?", "Is 20 MB/s enough?", "number"),
    ("What is mW short for?", "What is MW short for?", "number"),
    ("How do I turn Mb into kb?", "How do I turn MB into kB?", "number"),
    ("Are 20 m² enough?", "Are 20 m³ enough?", "number"),
    ("What does a² stand for?", "What does a₂ stand for?", "sign"),
    ("why do cats purr in a few words", "why do cats purr", "wish"),
    ("why do cats purr for dummies", "why do cats purr", "wish"),
    ("explain rent to a six year old", "explain rent", "wish"),
    ("what is rent in layman's terms", "what is rent", "wish"),
    ("was ist Miete kurz erklärt", "was ist Miete", "wish"),
    ("보증금이 뭐예요 두 문장으로", "보증금이 뭐예요", "wish"),
    ("보증금을 자세히 설명해줘", "보증금을 간단히 설명해줘", "wish"),
    ("보증금이 뭐예요? 영어로 답해줘", "보증금이 뭐예요? 독일어로 답해줘", "wish"),
    ("환불 절차를 단계별로 알려줘", "환불 절차를 알려줘", "wish"),
    ("Kann ich die Miete mindern?", "Kann ich die Miete nicht mindern?", "negation"),
    ("Brauche ich einen Ausweis?", "Brauche ich keinen Ausweis?", "negation"),
    ("solve 3x-4=8", "solve 3x+4=8", "sign"),
    ("what is 9 - y", "what is 9 + y", "sign"),
    ("simplify a-b+c", "simplify a+b-c", "sign"),
    ("what does i++ return", "what does ++i return", "sign"),
]
SAME = [
    ("is the pool open at 9 pm", "Is the pool open at 21:00?"),
    ("I have ninety minutes to change planes", "i've got 1.5 hours to change planes"),
    ("a bottle of 1500 ml", "a 1.5 litre bottle"),
    ("I can't log in", "I am unable to log in"),
    ("should I eat before or after training", "should I eat after or before training"),
    ("how do I set 2 alarms on my phone", "how do I set two alarms on my phone"),
    ("My parcel never arrived, who do I contact?", "I did not receive the package. Whom should I write to?"),
    ("how do I turn up the heating", "making the flat warmer"),
    ("what does it cost per 10,000 calls", "what does it cost per 10000 calls"),
    ("it is not too slow", "it is fast"),
    ("how do I get from leeds to york", "how can I get to york from leeds"),
    ("how do I get from leeds to york", "how do I get to york from leeds"),
    ("Please let me know the fee", "let me know the fee please"),
    ("can Anna hand the lease over to Ben", "is it possible for Ben to take over the lease from Anna"),
    ("what is 10²", "what is 10^2"),
    ("open in 2-3 days", "open in 2 to 3 days"),
    ("A friend called", "a friend called"),
    ("is it safe or not", "is it safe"),
    ("can I rent a car for a week", "can I rent a car for one week"),
    ("我可以退款吗", "我能不能退款"),
    ("账户怎么注销", "怎么注销账户"),
    ("差不多要多久", "要多久"),
    ("荷物はいつ届きますか", "荷物が届くのはいつですか"),
    ("払わなければならない税金", "払う税金"),
    ("쿠폰을 쓸 수 있나요", "쿠폰을 사용할 수 없나요?"),
    ("주소를 바꿔도 되나요", "주소 변경해도 돼요?"),
    ("돈을 친구에게 보내려면", "친구에게 돈을 보내는 방법"),
    ("5만원 이상 무료배송인가요", "50,000원 이상이면 배송이 무료인가요"),
    ("is the office shut on friday", "is the office closed on friday"),
    ("what is the luggage allowance to Rome", "what is the baggage allowance to Rome"),
    ("where do I collect my parcel after work", "where do I collect my package after work"),
    ("which D.C. motor do i need", "which d.c. motor do I need"),
    ("I want to raise my limit", "need help to raise my limit"),
    ("I want to raise my limit from Spain", "What's the way to raise my limit from Spain"),
    ("steps to raise my limit from Spain please", "I'd like to raise my limit from Spain"),
    ("Please tell me if the museum is open on Monday", "Do you know if the museum is open on Monday?"),
    ("Wie kann ich mein Paket umleiten?", "Ich möchte mein Paket umleiten"),
    ("Je voudrais changer mon code depuis Lyon", "Comment puis-je changer mon code depuis Lyon ?"),
    ("Quiero cambiar la dirección de entrega", "¿Cómo puedo cambiar la dirección de entrega?"),
    ("is it safe for kids under 5", "is it safe for kids who are under 5"),
    ("May I park here in March?", "Can I park here in March?"),
    ("is 10% of 50 dollars much", "is 10 percent of $50 much"),
    ("the ban of 500 rupee notes", "the ban of 500 notes"),
    ("is 20 km/h slow", "is 20 kilometres per hour slow"),
    ("How do I move house? Answer in Spanish.", "Please reply in Spanish: how do I move house?"),
    ("How do I say hello in German?", "What is the German word for hello?"),
    ("Could you briefly explain what a lease is?", "Could you explain what a lease is?"),
    ("Explain what a lease is in short", "Briefly explain what a lease is"),
    ("What is a lease? In one sentence.", "What is a lease? Answer in a single sentence please."),
    ("What are the best skis for beginners?", "What are the best skis for a beginner?"),
    ("may I send 25 MB by mail", "may I send 25 mb by mail"),
    ("MAY I SEND 25 MB BY MAIL", "may I send 25 Mb by mail"),
    ("does it use 10 KWH a day", "does it use 10 kWh a day"),
    ("What is MB short for?", "what is mb short for"),
    ("WHAT IS MB SHORT FOR", "What is Mb short for?"),
    ("Is CO₂ heavy?", "is CO2 heavy"),
    ("Are 20 m² enough?", "are 20 m2 enough"),
    ("Are 20 m² enough?", "are 20 square metres enough"),
    ("보증금이 뭐예요? 한 문장으로 답해줘", "한 문장으로 보증금이 뭔지 알려줘"),
    ("보증금이 뭐예요? 영어로 답해 주세요", "보증금이 뭐예요? 영어로 답변 부탁드립니다"),
    ("엑셀 자료를 표로 바꾸는 방법", "엑셀 자료 표로 변경하는 법"),
    ("Wo finde ich meine Kundennummer?", "Wo finde ich die Kundennummer?"),
    ("I need an X-ray", "I need an X ray"),
    ("the fee if I pay twelve months ahead", "the fee if I pay one year ahead"),
]
FRAMES = (
    "what about {}",
    "is it fine to go {} with my old car for the first time",
    "tell me whether {} is too much for the shelf",
)


def list_exchanges() -> dict[str, list[tuple[str, str]]]:
    """Return all pairs that the tables of words.toml tell apart, by table."""
    tables = tomllib.loads((resources.files("embedsmith") / "data" / "words.toml").read_text(encoding="utf-8"))
    relative = tables["relative"]
    families = [[member.split() for member in family["members"]] for family in tables["families"]]
    families += [
        [[f"{word} {period}" for word in member.split()] for member in relative["members"]]
        for period in relative["of"].split()
    ]
    units = [name for names, _, _ in tables["units"] for name in names.split()]
    money = tables["money"].split()
    found = {
        "opposites": [pair for one, other in tables["opposites"] for pair in product(one.split(), other.split())],
        "families": [pair for family in families for sides in combinations(family, 2) for pair in product(*sides)],
        "units": [(f"20 {one}", f"20 {other}") for one, other in combinations(units, 2)],
        "money": [(f"{one} 20", f"{other} 20") for one, other in combinations(money, 2)],
        "numbers": [(f"{one} tiles", f"{other} tiles") for one, other in combinations(tables["numbers"], 2)],
    }
    return {table: [(one.replace("_", " "), other.replace("_", " ")) for one, other in found[table]] for table in found}


@pytest.mark.parametrize(
    ("table", "least"), [("opposites", 250), ("families", 8000), ("units", 12000), ("money", 30), ("numbers", 450)]
)
def test_what_facts_names_the_guard_refuses(table: str, least: int) -> None:
    named = 0
    for (one, other), frame in zip(list_exchanges()[table], cycle(FRAMES), strict=False):
        left, right = frame.format(one), frame.format(other)
        if find_changes(left, right):
            named += 1
            assert find_veto(left, right) is not None, (left, right)
    assert named >= least


def count_vetoes(name: str) -> tuple[int, int]:
    """Return how many traps and how many paraphrases of a file of planted pairs are vetoed."""
    file = Path(__file__).parents[2] / "benchmarks" / "traps" / name
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found = Counter(row["label"] for row in rows if find_veto(row["text1"], row["text2"]) is not None)
    return found[0], found[1]


def test_other_decisions_are_another_version_of_the_rules() -> None:
    """Calibrations record the version, and servers say when theirs is another."""
    folder = Path(__file__).parents[2] / "benchmarks" / "traps"
    names = ("traps", "unspaced", "framing", "facts", "korean", "wishes", "gaps", "particles", "western")
    files = (folder / f"{name}.jsonl" for name in names)
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    decided = [find_veto(row["text1"], row["text2"]) is not None for row in rows if row["half"] == "dev"]
    assert (fingerprint_rules(), fingerprint(decided)) == DECIDED, (
        "same version, other decisions: raise RULES in cache/guard.py; then write both here"
    )


def test_most_chinese_and_japanese_traps_are_seen_and_most_paraphrases_let_through() -> None:
    traps, paraphrases = count_vetoes("unspaced.jsonl")
    assert traps >= 34  # of 36
    assert paraphrases <= 3  # of 36


def test_most_korean_traps_are_seen_and_most_paraphrases_let_through() -> None:
    traps, paraphrases = count_vetoes("korean.jsonl")
    assert traps >= 28  # of 30; 16 before its endings were read
    assert paraphrases <= 3  # of 30; 4 before


def test_most_traps_in_french_spanish_italian_portuguese_and_dutch_are_seen_and_most_paraphrases_let_through() -> None:
    traps, paraphrases = count_vetoes("western.jsonl")
    assert traps >= 114  # of 120; 67 before their words were read
    assert paraphrases <= 8  # of 120; 51 before


def test_korean_words_are_read_without_endings_and_numbers_in_words_where_something_is_counted() -> None:
    view = view_question("이천오백 원, 두 시간 삼십 분, 5만원")
    assert sorted(view.quantities) == [("plain", amount) for amount in (2.0, 30.0, 2500.0, 50000.0)]
    assert view_question("세탁기를 켜 두세요").quantities == {}
    assert view_question("한도를 늘리려면").words == view_question("한도를 올리는").words
    assert view_question("올리브는").words == ("올리브",)


@given(st.text("켜끄안못않없지하두세시분이가을를로에서까지나요는 03만천억왜?A中か", max_size=14))
def test_korean_endings_in_any_order_are_read(text: str) -> None:
    assert find_veto(text, text) is None
    assert (find_veto(text, "두 시간 안에 가나요") is None) == (find_veto("두 시간 안에 가나요", text) is None)


def test_another_way_to_ask_is_let_through_and_the_same_words_as_the_matter_are_not() -> None:
    traps, paraphrases = count_vetoes("framing.jsonl")
    assert traps >= 39  # of 49, as many as before framing was known
    assert paraphrases <= 3  # of 48; 26 before


def test_units_bounds_and_times_seen_from_now_are_told_apart_and_other_words_for_them_let_through() -> None:
    traps, paraphrases = count_vetoes("facts.jsonl")
    assert traps >= 36  # of 38
    assert paraphrases <= 13  # of 38


def test_wishes_for_the_answer_are_told_apart_and_the_same_words_as_the_topic_are_not_taken_for_them() -> None:
    traps, paraphrases = count_vetoes("wishes.jsonl")
    assert traps >= 38  # of 40; 9 before wishes were read
    assert paraphrases <= 6  # of 40; 14 before


def test_units_by_case_raised_digits_wishes_without_a_mark_and_in_korean_and_german_articles() -> None:
    traps, paraphrases = count_vetoes("gaps.jsonl")
    assert traps >= 88  # of 116, 24 of which differ in a capital and are left to the threshold; 45 before
    assert paraphrases <= 19  # of 116; 30 before


def test_an_opposite_is_seen_though_the_same_word_stands_in_both_questions() -> None:
    traps, paraphrases = count_vetoes("particles.jsonl")
    assert traps >= 23  # of 24; none before words were counted
    assert paraphrases <= 3  # of 24, as before
    assert find_veto("How do I turn off roaming on my phone?", "How do I turn on roaming on my phone?") is not None
    pair = {"pro": frozenset({"con"}), "con": frozenset({"pro"})}
    assert find_flip({"pro": 1, "con": 1}, {"con": 2}, pair) == ("pro", "con")
    assert find_flip({"pro": 1, "con": 1}, {"con": 1, "roof": 1}, pair) is None  # of a pair, one side


@pytest.mark.parametrize(
    "text",
    [
        "JSON parser in python",
        "how long is it in short tracks",
        "book a table for two",
        "How do I write a date in JSON?",
        "Do you speak German?",
        "the best (English) love songs",
        "list all languages: English, German, French",
        "auf Deutsch bitte",
        "德语用英文怎么说",
        "영어로 된 메뉴판이 있나요",
        "표로 입장할 수 있나요",
        "간단히 설명해 주는 책이 있나요",
        "목표로 정리해줘",
    ],
)
def test_a_topic_is_no_wish(text: str) -> None:
    assert read_wishes(text).keys == ()


def test_a_wish_that_may_be_the_topic_is_shared_by_whoever_names_it() -> None:
    asked = read_wishes("Explain the German tariff in German")
    assert [(wish.value, wish.firm) for wish in asked.found] == [("german", False)]
    assert find_veto("Explain the German tariff in German", "Explain the German tariff") is not None


def test_a_wish_in_korean_is_counted() -> None:
    assert read_wishes("보증금이 뭐예요? 백자 말고 200자 이내로 답해줘").keys == (("length", "200 character"),)
    assert read_wishes("보증금 세 줄 요약해줘").keys == (("length", "3 line"),)


@given(
    st.text("answer in spanish german json, as a table. short? (5 words) 用英文回答 영어로 두 문장 답해줘", max_size=60)
)
def test_any_order_of_wishes_is_read(text: str) -> None:
    one, other = (find_veto(*pair) for pair in ((text, f"lease {text}"), (f"lease {text}", text)))
    assert (one is None) == (other is None)


def test_framing_stands_before_the_matter_only() -> None:
    assert read_framing("I want to pay").isdisjoint(read_framing("Who wants to pay"))
    assert "want" not in read_framing("I want to know what dogs want")
    assert "want" not in read_framing(f"{'please ' * 100}I want to pay")  # no question, and no work without end


@pytest.mark.parametrize(("left", "right", "kind"), TRAPS, ids=[f"{kind}: {one}" for one, _, kind in TRAPS])
def test_a_fact_that_differs_is_a_veto(left: str, right: str, kind: str) -> None:
    veto = find_veto(left, right)
    assert veto is not None
    assert veto.kind == kind


@pytest.mark.parametrize(("left", "right"), SAME)
def test_other_words_for_the_same_are_no_veto(left: str, right: str) -> None:
    assert find_veto(left, right) is None


@given(st.text(max_size=80), st.text(max_size=80))
def test_it_never_fails_and_does_not_depend_on_who_asks(left: str, right: str) -> None:
    one, other = find_veto(left, right), find_veto(right, left)
    assert (one is None) == (other is None)


@given(st.text(max_size=80))
def test_a_text_is_never_vetoed_against_itself(text: str) -> None:
    assert find_veto(text, text) is None


@given(st.text("do n't’0123456789:.,/am\u1369", max_size=30))
def test_odd_numbers_and_contractions_are_read(text: str) -> None:
    assert find_veto(text, text) is None


def test_what_tokenizers_and_typists_leave_behind() -> None:
    assert view_question("why do n't you call").negations == 1  # it once failed here, and on the next three
    assert view_question("open 10:00,11:00").quantities == {("clock", 10.0): 1, ("clock", 11.0): 1}
    assert view_question("\u1369 birr").quantities == {}
    assert find_veto("is 1/" + "7" * 5000 + " much", "is 1/2 much") is not None
    assert find_veto("적금 " + "1" * 20000, "적금 1") is not None  # took 40 seconds: each digit was read as a beginning


def test_quantities_are_in_one_unit() -> None:
    view = view_question("2 weeks, half an hour, 1,500 mg, 20:30, 7 pm, a dozen eggs, 1/2 cup")
    assert dict(view.quantities) == {
        ("time", 1209600.0): 1,
        ("time", 1800.0): 1,
        ("mass", 1.5): 1,
        ("clock", 20.5): 1,
        ("clock", 19.0): 1,
        ("plain", 12.0): 1,
        ("volume", 0.118294): 1,
    }


@pytest.mark.parametrize(
    ("one", "other"), [("cancelled", "cancelling"), ("companies", "company"), ("fees", "fee"), ("matches", "match")]
)
def test_forms_of_a_word_have_one_stem(one: str, other: str) -> None:
    assert stem(one) == stem(other)


@pytest.mark.parametrize(
    ("query", "candidate", "detail"),
    [
        ("How do I unfreeze my card?", "How do I freeze my card?", "unfreeze / freeze"),
        ("submit an electricity meter reading", "submit a gas meter reading", "electricity / gas"),
        ("houses in Berlin", "houses in Hamburg", "berlin / hamburg"),
        ("Wie kündige ich die Versicherung?", "Wie kündige ich den Vertrag?", "versicherung / vertrag"),
    ],
)
def test_a_veto_names_the_words_and_not_their_stems(query: str, candidate: str, detail: str) -> None:
    veto = find_veto(query, candidate)
    assert veto is not None
    assert veto.detail == detail


def test_what_stands_behind_a_lost_vowel_is_read() -> None:
    veto = find_veto("combien coûte un appel depuis l'Espagne", "combien coûte un appel depuis l'Italie")
    assert veto is not None
    assert veto.detail == "espagne / italie"
    assert find_veto("What's the fee?", "what is the fee") is None


def test_two_tables_of_numbers_are_told_apart_without_each_against_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 numbers on each side held a thread for 39 seconds."""
    compared: list[object] = []
    equal = guard.are_equal
    monkeypatch.setattr(guard, "are_equal", lambda *given: compared.append(given) or equal(*given))
    here, there = (" ".join(f"bill {number}" for number in range(start, 4000, 2)) for start in (0, 1))
    veto = find_veto(here, there)
    assert veto is not None
    assert veto.kind == "number"
    assert find_veto(here, here.upper()) is None
    assert len(compared) <= 2 * guard.TABLES
