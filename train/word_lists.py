"""Small lists of things that everybody knows, from which few-shot questions are made."""

from __future__ import annotations

CAPITALS = """
France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Greece Athens, Poland Warsaw, Austria Vienna,
Hungary Budapest, Russia Moscow, Ukraine Kyiv, Sweden Stockholm, Norway Oslo, Finland Helsinki, Denmark Copenhagen,
Ireland Dublin, Belgium Brussels, Switzerland Bern, Romania Bucharest, Bulgaria Sofia, Serbia Belgrade, Croatia Zagreb,
Iceland Reykjavik, Turkey Ankara, Egypt Cairo, Kenya Nairobi, Ghana Accra, Senegal Dakar, Ethiopia Addis Ababa,
Iran Tehran, Iraq Baghdad, Syria Damascus, Lebanon Beirut, Jordan Amman, Afghanistan Kabul, Pakistan Islamabad,
Nepal Kathmandu, Thailand Bangkok, Vietnam Hanoi, Malaysia Kuala Lumpur, Indonesia Jakarta, Philippines Manila,
Japan Tokyo, China Beijing, Mongolia Ulaanbaatar, Australia Canberra, Canada Ottawa, Cuba Havana, Jamaica Kingston,
Argentina Buenos Aires, Chile Santiago, Peru Lima, Colombia Bogota, Venezuela Caracas, Uruguay Montevideo,
Ecuador Quito, Libya Tripoli, Tunisia Tunis, Morocco Rabat, Algeria Algiers, Zimbabwe Harare, Zambia Lusaka,
Uganda Kampala, Estonia Tallinn, Latvia Riga, Lithuania Vilnius, Armenia Yerevan, Georgia Tbilisi
"""
FRENCH = """
cat chat, dog chien, house maison, water eau, bread pain, milk lait, cheese fromage, apple pomme, book livre,
tree arbre, sun soleil, moon lune, night nuit, day jour, hand main, head tête, heart cœur, eye œil, man homme,
woman femme, child enfant, mother mère, father père, brother frère, sister sœur, friend ami, king roi, queen reine,
city ville, street rue, door porte, window fenêtre, table table, chair chaise, bed lit, car voiture, train train,
horse cheval, bird oiseau, fish poisson, flower fleur, garden jardin, school école, church église, fire feu,
snow neige, rain pluie, wind vent, sea mer, mountain montagne, river fleuve, white blanc, black noir, red rouge,
green vert, blue bleu, big grand, small petit, new nouveau, old vieux, good bon, bad mauvais, love amour, death mort,
life vie, time temps, year année, week semaine, month mois, winter hiver, summer été, wine vin, meat viande,
salt sel, sugar sucre, egg œuf, key clé, paper papier, money argent, work travail, war guerre, peace paix
"""
ANTONYMS = """
hot cold, big small, up down, left right, old new, good bad, fast slow, high low, long short, light dark, day night,
black white, open closed, rich poor, happy sad, hard soft, wet dry, full empty, early late, near far, strong weak,
loud quiet, clean dirty, heavy light, thick thin, wide narrow, deep shallow, true false, right wrong, young old,
first last, in out, on off, push pull, buy sell, win lose, love hate, start stop, begin end, alive dead, sweet sour,
inside outside, above below, before after, always never, more less, most least, male female, north south, east west,
summer winter, friend enemy, war peace, life death, success failure, question answer, teacher student, give take,
come go, remember forget, arrive leave, laugh cry, increase decrease, positive negative, public private,
cheap expensive, safe dangerous, smooth rough, sharp dull, brave cowardly, asleep awake, front back, top bottom,
minimum maximum
"""


def pairs(lines: str) -> list[tuple[str, str]]:
    """The (question, answer) pairs of a list: questions are one word each, answers what follows up to the comma."""
    entries = [entry.strip().partition(" ") for entry in lines.replace("\n", " ").split(",")]
    return [(question, answer) for question, _, answer in entries]
