"""French, Spanish, Italian, Portuguese and Dutch words are read as names that the tables of English know."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedsmith.cache.guard import find_veto, view_both, view_question
from embedsmith.lexicon import load_lexicon, load_tables, stem
from embedsmith.western import cut_ending, read_names

TOLD = [
    ("fr", "Puis-je résilier mon contrat ?"),
    ("fr", "Comment j'active l'itinérance ?"),
    ("fr", "resilier abonnement"),
    ("es", "¿Cómo cancelo mi vuelo?"),
    ("es", "como cancelo mi vuelo"),
    ("it", "Come posso disdire l'abbonamento?"),
    ("pt", "Como se envia dinheiro para França?"),
    ("nl", "Hoe zeg ik mijn abonnement op?"),
    ("nl", "Wat kost een pas?"),
]
NOT_TOLD = [
    "What does je ne sais quoi mean?",
    "How do I say adios amigo in Spanish?",
    "Was kosten die Versandkosten?",
    "Wie lange dauert die Lieferung?",
    "Kan man få pengene tilbage?",
    "Jak wrócić do konta na telefonie",
    "Cum pot anula contractul meu?",
    "Los Angeles weather",
    "La Liga table",
    "Which bank credit card is best?",
]
DIFFERENT = [
    ("Puis-je résilier mon contrat ?", "Ne puis-je pas résilier mon contrat ?", "negation"),
    ("Que faire si je reçois encore vos lettres ?", "Que faire si je ne reçois plus vos lettres ?", "negation"),
    ("Quel est le prix à quatre-vingt-dix jours ?", "Quel est le prix à soixante-dix jours ?", "number"),
    ("Le parking est-il gratuit le lundi ?", "Le parking est-il payant le lundi ?", "opposite"),
    ("¿Cuánto son dólares en euros?", "¿Cuánto son euros en dólares?", "order"),
    ("¿Abrís los martes?", "¿Abrís los jueves?", "word"),
    ("Responde en inglés: ¿cómo cancelo mi vuelo?", "¿Cómo cancelo mi vuelo?", "wish"),
    ("Ho ricevuto il pacco", "Non ho ricevuto il pacco", "negation"),
    ("Posso pagar com cartão?", "Posso pagar sem cartão?", "negation"),
    ("Como cancelo a assinatura? Resumidamente.", "Como cancelo a assinatura?", "wish"),
    ("Hoe log ik in?", "Hoe log ik uit?", "opposite"),
    ("Moet ik voor de levering betalen?", "Moet ik na de levering betalen?", "opposite"),
    ("De trein van Gent naar Luik", "De trein van Luik naar Gent", "order"),
]
SAME = [
    ("Pourquoi n'ai-je pas reçu mon colis ?", "Pourquoi est-ce que je n'ai pas reçu le colis ?"),
    ("Je ne reçois pas le code", "Je ne reçois jamais le code"),
    ("Peut-on rendre le vélo ailleurs ou pas ?", "Peut-on rendre le vélo ailleurs ?"),
    ("Quels sont les frais pour 1 000 euros ?", "Quels sont les frais pour 1.000 € ?"),
    ("Le guichet ferme à 18h30", "Le guichet ferme à 18:30"),
    ("¿Cómo cancelo mi vuelo?", "¿Cómo puedo cancelar el vuelo?"),
    ("No recibí nunca mi pedido", "Nunca recibí mi pedido"),
    ("Non ho ricevuto nessun messaggio", "Non ho ricevuto messaggi"),
    ("Quanto pago per trentacinque giorni?", "Quanto pago per 35 giorni?"),
    ("A loja fecha no domingo?", "A loja está fechada aos domingos?"),
    ("Hoe vraag ik een paspoort aan?", "Hoe kan ik een paspoort aanvragen?"),
    ("Wat kost het voor vijfentwintig dagen?", "Wat kost het voor 25 dagen?"),
]


@pytest.mark.parametrize(("language", "text"), TOLD)
def test_small_words_tell_the_language(language: str, text: str) -> None:
    assert view_question(text).language == language


@pytest.mark.parametrize("text", NOT_TOLD)
def test_words_of_another_language_tell_none(text: str) -> None:
    assert view_question(text).language == ""


@pytest.mark.parametrize(("left", "right", "kind"), DIFFERENT)
def test_a_fact_that_differs_is_a_veto(left: str, right: str, kind: str) -> None:
    found = find_veto(left, right)
    assert found is not None
    assert found.kind == kind


@pytest.mark.parametrize(("left", "right"), SAME)
def test_other_words_for_the_same_are_no_veto(left: str, right: str) -> None:
    assert find_veto(left, right) is None


def test_two_texts_are_read_as_of_one_language() -> None:
    assert view_question("fin contrat").language == ""
    left, right = view_both("Comment résilier mon contrat ?", "fin contrat")
    assert (left.language, right.language) == ("fr", "fr")
    left, right = view_both("Comment résilier mon contrat ?", "How do I cancel my contract in France?")
    assert (left.language, right.language) == ("fr", "")


def test_a_false_friend_is_no_english_word() -> None:
    names = read_names(["le", "four", "est", "en", "panne", "depuis", "dix", "jours"], "fr")
    assert names == ["~le", "four~", "~est", "in", "pan~", "from", "ten", "day"]
    assert not view_question("Pourquoi mon four ne marche pas ?").quantities


def test_forms_of_a_word_have_one_stem() -> None:
    for language, forms in {
        "fr": "annuler annulez annulée annulés annule",
        "es": "reservar reservo reservado reservas",
        "it": "prenotare prenoto prenotato prenota",
        "pt": "mensagem mensagens",
        "nl": "boeken boek boekt",
    }.items():
        assert len({cut_ending(form.replace("é", "e"), language) for form in forms.split()}) == 1, forms


def test_dutch_particles_are_joined_to_their_verbs() -> None:
    assert read_names(["zet", "de", "meldingen", "aan"], "nl") == ["enable", "~de", "melding~"]
    assert read_names(["de", "meldingen", "aan", "te", "zetten"], "nl") == ["~de", "melding~", "enable"]
    assert read_names(["ik", "wacht", "in", "de", "winkel"], "nl") == ["~ik", "wach~", "in", "~de", "shop~"]


SOUP = (
    "ne n'ai pas plus jamais de l' la le qu'il je jusqu'à no nunca sin el treinta y cinco non senza il trenta prima "
    "para niet zonder aan uit zet te de vijf 1 000 18 h 30 1.000,50 quatre vingt dix semaine prochaine o mês que à ?"
)


@given(*[st.lists(st.sampled_from(SOUP.split()), max_size=9).map(" ".join)] * 2)
def test_words_in_any_order_are_read_and_it_does_not_depend_on_who_asks(left: str, right: str) -> None:
    assert find_veto(left, left) is None or view_question(left).silent
    assert (find_veto(left, right) is None) == (find_veto(right, left) is None)


@pytest.mark.parametrize("code", ["fr", "es", "it", "pt", "nl"])
def test_every_form_has_one_name_and_every_language_its_opposites(code: str) -> None:
    tables, opposites = load_tables()["western"], load_lexicon().opposites
    rows = [*tables["words"]["forms"], *tables["words"]["stems"]]
    assert {len(row) for row in rows} == {1 + len(tables["languages"])}
    column = 1 + tables["languages"].index(code)
    forms = {row[0]: row[column].split() for row in rows}
    small = [form for row in tables["small"][code] for form in row.split()]
    times = Counter([*small, *(form for row in forms.values() for form in row)])
    assert [form for form, many in times.items() if many > 1] == []
    pairs = [
        (left[0], right[0])
        for (one, left), (other, right) in product(forms.items(), forms.items())
        if left and right and stem(other) in opposites.get(stem(one), ())
    ]
    assert len(pairs) >= 2 * 80
