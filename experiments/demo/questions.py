"""Questions with one short answer, and questions of the same kind that have none: their subject is made up."""

import random
from typing import NamedTuple

from bayes_lora.experiments.rows.completion_rows import COMPLETION, PROMPT
from bayes_lora.experiments.rows.rows import Row
from bayes_lora.randomness import Part

_COUNTRIES = """
Afghanistan: Kabul; Albania: Tirana; Algeria: Algiers; Angola: Luanda; Argentina: Buenos Aires; Armenia: Yerevan;
Australia: Canberra; Austria: Vienna; Azerbaijan: Baku; Bahrain: Manama; Bangladesh: Dhaka; Barbados: Bridgetown;
Belarus: Minsk; Belgium: Brussels; Belize: Belmopan; Bhutan: Thimphu; Botswana: Gaborone; Brazil: Brasilia; Bulgaria:
Sofia; Burkina Faso: Ouagadougou; Cambodia: Phnom Penh; Cameroon: Yaounde; Canada: Ottawa; Chad: N'Djamena; Chile:
Santiago; China: Beijing; Colombia: Bogota; Costa Rica: San Jose; Croatia: Zagreb; Cuba: Havana; Cyprus: Nicosia;
Denmark: Copenhagen; Ecuador: Quito; Egypt: Cairo; El Salvador: San Salvador; Eritrea: Asmara; Estonia: Tallinn;
Ethiopia: Addis Ababa; Fiji: Suva; Finland: Helsinki; France: Paris; Gabon: Libreville; Georgia: Tbilisi; Germany:
Berlin; Ghana: Accra; Greece: Athens; Guatemala: Guatemala City; Guinea: Conakry; Guyana: Georgetown; Haiti:
Port-au-Prince; Honduras: Tegucigalpa; Hungary: Budapest; Iceland: Reykjavik; India: New Delhi; Indonesia: Jakarta;
Iran: Tehran; Iraq: Baghdad; Ireland: Dublin; Italy: Rome; Jamaica: Kingston; Japan: Tokyo; Jordan: Amman; Kenya:
Nairobi; Kuwait: Kuwait City; Laos: Vientiane; Latvia: Riga; Lebanon: Beirut; Lesotho: Maseru; Liberia: Monrovia;
Libya: Tripoli; Lithuania: Vilnius; Luxembourg: Luxembourg; Madagascar: Antananarivo; Malawi: Lilongwe; Malaysia:
Kuala Lumpur; Mali: Bamako; Malta: Valletta; Mauritania: Nouakchott; Mauritius: Port Louis; Mexico: Mexico City;
Moldova: Chisinau; Mongolia: Ulaanbaatar; Montenegro: Podgorica; Morocco: Rabat; Mozambique: Maputo; Namibia:
Windhoek; Nepal: Kathmandu; New Zealand: Wellington; Nicaragua: Managua; Niger: Niamey; Nigeria: Abuja; North Korea:
Pyongyang; Norway: Oslo; Oman: Muscat; Pakistan: Islamabad; Panama: Panama City; Papua New Guinea: Port Moresby;
Paraguay: Asuncion; Peru: Lima; Philippines: Manila; Poland: Warsaw; Portugal: Lisbon; Qatar: Doha; Romania:
Bucharest; Russia: Moscow; Rwanda: Kigali; Samoa: Apia; Saudi Arabia: Riyadh; Senegal: Dakar; Serbia: Belgrade; Sierra
Leone: Freetown; Slovakia: Bratislava; Slovenia: Ljubljana; Somalia: Mogadishu; South Korea: Seoul; Spain: Madrid;
Sudan: Khartoum; Suriname: Paramaribo; Sweden: Stockholm; Switzerland: Bern; Syria: Damascus; Tajikistan: Dushanbe;
Thailand: Bangkok; Togo: Lome; Tonga: Nuku'alofa; Tunisia: Tunis; Turkey: Ankara; Turkmenistan: Ashgabat; Uganda:
Kampala; Ukraine: Kyiv; United Kingdom: London; Uruguay: Montevideo; Uzbekistan: Tashkent; Vanuatu: Port Vila;
Venezuela: Caracas; Vietnam: Hanoi; Yemen: Sanaa; Zambia: Lusaka; Zimbabwe: Harare
"""
_STATES = """
Alabama: Montgomery; Alaska: Juneau; Arizona: Phoenix; Arkansas: Little Rock; California: Sacramento; Colorado:
Denver; Connecticut: Hartford; Delaware: Dover; Florida: Tallahassee; Hawaii: Honolulu; Idaho: Boise; Illinois:
Springfield; Indiana: Indianapolis; Iowa: Des Moines; Kansas: Topeka; Kentucky: Frankfort; Louisiana: Baton Rouge;
Maine: Augusta; Maryland: Annapolis; Massachusetts: Boston; Michigan: Lansing; Minnesota: Saint Paul; Mississippi:
Jackson; Missouri: Jefferson City; Montana: Helena; Nebraska: Lincoln; Nevada: Carson City; New Hampshire: Concord;
New Jersey: Trenton; New Mexico: Santa Fe; North Carolina: Raleigh; North Dakota: Bismarck; Ohio: Columbus; Oklahoma:
Oklahoma City; Oregon: Salem; Pennsylvania: Harrisburg; Rhode Island: Providence; South Carolina: Columbia; South
Dakota: Pierre; Tennessee: Nashville; Texas: Austin; Utah: Salt Lake City; Vermont: Montpelier; Virginia: Richmond;
West Virginia: Charleston; Wisconsin: Madison; Wyoming: Cheyenne
"""
_ELEMENTS = """
hydrogen: H; helium: He; lithium: Li; beryllium: Be; boron: B; carbon: C; nitrogen: N; oxygen: O; fluorine: F; neon:
Ne; sodium: Na; magnesium: Mg; aluminium: Al; silicon: Si; phosphorus: P; sulfur: S; chlorine: Cl; argon: Ar;
potassium: K; calcium: Ca; scandium: Sc; titanium: Ti; vanadium: V; chromium: Cr; manganese: Mn; iron: Fe; cobalt: Co;
nickel: Ni; copper: Cu; zinc: Zn; gallium: Ga; germanium: Ge; arsenic: As; selenium: Se; bromine: Br; krypton: Kr;
rubidium: Rb; strontium: Sr; yttrium: Y; zirconium: Zr; niobium: Nb; molybdenum: Mo; ruthenium: Ru; rhodium: Rh;
palladium: Pd; silver: Ag; cadmium: Cd; indium: In; tin: Sn; antimony: Sb; tellurium: Te; iodine: I; xenon: Xe;
caesium: Cs; barium: Ba; lanthanum: La; cerium: Ce; neodymium: Nd; samarium: Sm; europium: Eu; terbium: Tb; erbium:
Er; ytterbium: Yb; lutetium: Lu; hafnium: Hf; tantalum: Ta; tungsten: W; rhenium: Re; osmium: Os; iridium: Ir;
platinum: Pt; gold: Au; mercury: Hg; thallium: Tl; lead: Pb; bismuth: Bi; polonium: Po; radon: Rn; radium: Ra;
actinium: Ac; thorium: Th; uranium: U; neptunium: Np; plutonium: Pu; americium: Am
"""


class _Kind(NamedTuple):
    """Questions about one property of some things.

    Attributes:
        question: with a place for the thing.
        facts: things and their answers.
        beginnings, endings: of the names of things that do not exist.
    """

    question: str
    facts: str
    beginnings: tuple[str, ...]
    endings: tuple[str, ...]

    def real(self) -> dict[str, str]:
        pairs = (entry.split(":") for entry in self.facts.replace("\n", " ").split(";"))
        return {thing.strip(): answer.strip() for thing, answer in pairs}

    def made_up(self) -> list[str]:
        return [begin + end for begin in self.beginnings for end in self.endings]


_KINDS = (
    _Kind(
        "What is the capital of {}?",
        _COUNTRIES,
        ("Velt", "Dorm", "Kasp", "Brin", "Osk", "Tarv", "Lumb", "Zen"),
        ("avia", "istan", "oria", "land", "uela"),
    ),
    _Kind(
        "What is the capital of the state of {}?",
        _STATES,
        ("Tenn", "Mar", "Wisc", "Dal"),
        ("okota", "oming", "iana"),
    ),
    _Kind(
        "What is the chemical symbol of {}?",
        _ELEMENTS,
        ("vel", "dor", "quin", "bras", "ost", "fer"),
        ("tium", "onium", "ogen"),
    ),
)


class Questions(NamedTuple):
    """Rows with prompt and completion, the answer; those that have none in reality have none here either."""

    train: list[Row]
    answerable: list[Row]
    unanswerable: list[Row]


def make_questions(*, share_train: float = 0.5, seed: int = 0) -> Questions:
    """The questions of all kinds, mixed: some to learn how answers look, others to ask, and those without an answer."""
    order = random.Random(Part.SPLIT.seed(seed))
    real, none = [], []
    for kind in _KINDS:
        real += [_row(kind, thing, answer) for thing, answer in kind.real().items()]
        none += [_row(kind, thing) for thing in kind.made_up()]
    order.shuffle(real)
    order.shuffle(none)
    split = round(share_train * len(real))
    return Questions(real[:split], real[split:], none)


def _row(kind: _Kind, thing: str, answer: str | None = None) -> Row:
    asked = {PROMPT: f"Question: {kind.question.format(thing)}\nAnswer:"}
    return asked if answer is None else {**asked, COMPLETION: f" {answer}"}
