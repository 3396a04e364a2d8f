# ruff: noqa: E501 (a language a line)
"""An obedient language model for every prompt of the recipe e5: it reads what it is asked for and writes just that.

Texts are common words of the language in an order that the prompt's hash decides, with a number that makes each text
one of its kind; so they are in the right language and of the right length, and mean nothing.
"""

from __future__ import annotations

import json
import random
import re

from embedsmith.synthesis.languages import known_languages

WORDS = {
    "af": "die van het nie wat met hulle vir ons maar sou baie huis môre gister werk skool kinders goeie mense waarom omdat geskryf",
    "am": "ነው እና ላይ ውስጥ ወደ ነበር ይህ ሰዎች ቤት ትምህርት ዛሬ ነገ ውሃ ሥራ ልጆች አገር ጊዜ በጣም ሁሉም ግን",
    "ar": "في من على إلى هذا التي الذي كان المدينة الناس البيت الماء اليوم غدا العمل المدرسة الأطفال كبير جديد لماذا كيف بعد قبل",
    "as": "আৰু আছে নাই কৰিব মানুহ ঘৰ পানী আজি কালি কাম বিদ্যালয় ল'ৰা ডাঙৰ নতুন কিয় কেনেকৈ পিছত আগতে সকলো অসম",
    "az": "və bu üçün ilə olan deyil insanlar ev su bu gün sabah iş məktəb uşaqlar böyük yeni niyə necə sonra əvvəl şəhər çox",
    "be": "і не на што гэта быў людзі дом вада сёння заўтра праца школа дзеці вялікі новы чаму як пасля перад горад вельмі ўсе",
    "bg": "и не на че това беше хората къща вода днес утре работа училище деца голям нов защо как след преди град много всички които",
    "bn": "এবং আছে নেই করতে মানুষ বাড়ি জল আজ কাল কাজ বিদ্যালয় শিশু বড় নতুন কেন কিভাবে পরে আগে শহর সবাই তাদের",
    "br": "ar hag e zo ket evit gant an dud ti dour hiziv warc'hoazh labour skol bugale bras nevez perak penaos goude kêr holl met ouzh",
    "bs": "i ne na što je bio ljudi kuća voda danas sutra posao škola djeca veliki novi zašto kako poslije prije grad vrlo svi koji",
    "ca": "i no de que amb per als homes casa aigua avui demà feina escola nens gran nou per què com després abans ciutat molt tots però",
    "cs": "a ne že které byl lidé dům voda dnes zítra práce škola děti velký nový proč jak poté před město velmi všichni jsou když",
    "cy": "y ac yn nid oedd pobl tŷ dŵr heddiw yfory gwaith ysgol plant mawr newydd pam sut ar ôl cyn dinas iawn pawb ond gyda",
    "da": "og ikke det som var mennesker huset vand i dag i morgen arbejde skole børn stor ny hvorfor hvordan efter før byen meget alle men blev",
    "de": "und nicht das die war Menschen Haus Wasser heute morgen Arbeit Schule Kinder groß neu warum wie nach vor Stadt sehr alle aber wurde",
    "el": "και δεν το που ήταν άνθρωποι σπίτι νερό σήμερα αύριο δουλειά σχολείο παιδιά μεγάλο νέο γιατί πώς μετά πριν πόλη πολύ όλοι αλλά",
    "en": "the and not that was people house water today tomorrow work school children large new why how after before town very everybody but with their",
    "eo": "kaj ne la kiu estis homoj domo akvo hodiaŭ morgaŭ laboro lernejo infanoj granda nova kial kiel post antaŭ urbo tre ĉiuj sed kun",
    "es": "y no el que era gente casa agua hoy mañana trabajo escuela niños grande nuevo por qué cómo después antes ciudad muy todos pero con",
    "et": "ja ei see mis oli inimesed maja vesi täna homme töö kool lapsed suur uus miks kuidas pärast enne linn väga kõik aga koos",
    "eu": "eta ez hau zen jendea etxea ura gaur bihar lana eskola haurrak handia berria zergatik nola ondoren aurretik hiria oso guztiak baina ditu",
    "fa": "و نه این که بود مردم خانه آب امروز فردا کار مدرسه کودکان بزرگ جدید چرا چگونه بعد قبل شهر بسیار همه اما می‌شود",
    "fi": "ja ei se joka oli ihmiset talo vesi tänään huomenna työ koulu lapset suuri uusi miksi miten jälkeen ennen kaupunki hyvin kaikki mutta kanssa",
    "fr": "et ne pas le qui était les gens maison eau aujourd'hui demain travail école enfants grand nouveau pourquoi comment après avant ville très tous mais",
    "fy": "en net it dat wie minsken hûs wetter hjoed moarn wurk skoalle bern grut nij wêrom hoe nei foar stêd tige allegear mar mei har",
    "ga": "agus níl an sin bhí daoine teach uisce inniu amárach obair scoil páistí mór nua cén fáth conas tar éis roimh cathair an-mhaith gach ach leis",
    "gd": "agus chan eil an sin bha daoine taigh uisge an-diugh a-màireach obair sgoil clann mòr ùr carson ciamar às dèidh ro baile glè uile ach leis",
    "gl": "e non o que era xente casa auga hoxe mañá traballo escola nenos grande novo por que como despois antes cidade moi todos pero coa unha",
    "gu": "અને નથી આ છે હતો લોકો ઘર પાણી આજે કાલે કામ શાળા બાળકો મોટું નવું કેમ કેવી રીતે પછી પહેલાં શહેર ખૂબ બધા પણ",
    "ha": "da ba wannan shi ne mutane gida ruwa yau gobe aiki makaranta yara babba sabo me yasa yadda bayan kafin gari sosai duka amma tare",
    "he": "ו לא זה אשר היה אנשים בית מים היום מחר עבודה בית ספר ילדים גדול חדש למה איך אחרי לפני עיר מאוד כולם אבל",
    "hi": "और नहीं यह है था लोग घर पानी आज कल काम विद्यालय बच्चे बड़ा नया क्यों कैसे बाद पहले शहर बहुत सभी लेकिन उनके",
    "hr": "i ne na što je bio ljudi kuća voda danas sutra posao škola djeca veliki novi zašto kako poslije prije grad vrlo svi koji tijekom",
    "hu": "és nem az hogy volt emberek ház víz ma holnap munka iskola gyerekek nagy új miért hogyan után előtt város nagyon mindenki de vele",
    "hy": "և ոչ այս որ էր մարդիկ տուն ջուր այսօր վաղը աշխատանք դպրոց երեխաներ մեծ նոր ինչու ինչպես հետո առաջ քաղաք շատ բոլորը բայց",
    "id": "dan tidak itu yang adalah orang rumah air hari ini besok kerja sekolah anak-anak besar baru mengapa bagaimana setelah sebelum kota sangat semua tetapi dengan",
    "is": "og ekki það sem var fólk hús vatn í dag á morgun vinna skóli börn stór nýr hvers vegna hvernig eftir áður borg mjög allir en með",
    "it": "e non il che era persone casa acqua oggi domani lavoro scuola bambini grande nuovo perché come dopo prima città molto tutti ma con della",
    "ja": "これは です ます 人々 家の 水が 今日 明日の 仕事を 学校に 子供たち 大きい 新しい なぜ どうして の後 町は とても みんな しかし",
    "jv": "lan ora iku kang ana wong omah banyu dina iki sesuk gawe sekolah bocah gedhe anyar kena apa kepriye sawise sadurunge kutha banget kabeh nanging karo",
    "ka": "და არ ეს რომ იყო ხალხი სახლი წყალი დღეს ხვალ სამუშაო სკოლა ბავშვები დიდი ახალი რატომ როგორ შემდეგ წინ ქალაქი ძალიან ყველა მაგრამ",
    "kk": "және емес бұл үшін болды адамдар үй су бүгін ертең жұмыс мектеп балалар үлкен жаңа неге қалай кейін бұрын қала өте барлық бірақ",
    "km": "និង មិន នេះ ដែល មនុស្ស ផ្ទះ ទឹក ថ្ងៃនេះ ស្អែក ការងារ សាលារៀន កុមារ ធំ ថ្មី ហេតុអ្វី យ៉ាងដូចម្តេច បន្ទាប់ មុន ទីក្រុង ណាស់",
    "kn": "ಮತ್ತು ಇಲ್ಲ ಇದು ಎಂದು ಜನರು ಮನೆ ನೀರು ಇಂದು ನಾಳೆ ಕೆಲಸ ಶಾಲೆ ಮಕ್ಕಳು ದೊಡ್ಡ ಹೊಸ ಏಕೆ ಹೇಗೆ ನಂತರ ಮೊದಲು ನಗರ ತುಂಬಾ ಎಲ್ಲರೂ ಆದರೆ",
    "ko": "그리고 아니다 이것은 사람들이 집에서 물을 오늘 내일은 일을 학교에 아이들은 크다 새로운 왜 어떻게 이후에 전에 도시는 매우 모두 그러나",
    "ku": "û ne ev ku bû mirov mal av îro sibê kar dibistan zarok mezin nû çima çawa piştî berî bajar gelek hemû lê bi wan",
    "ky": "жана эмес бул үчүн болгон адамдар үй суу бүгүн эртең жумуш мектеп балдар чоң жаңы эмне үчүн кандай кийин мурун шаар абдан баары бирок",
    "la": "et non est quod erat homines domus aqua hodie cras opus schola liberi magnus novus cur quomodo postea ante urbs valde omnes sed cum",
    "lo": "ແລະ ບໍ່ ນີ້ ທີ່ ຄົນ ເຮືອນ ນ້ຳ ມື້ນີ້ ມື້ອື່ນ ວຽກ ໂຮງຮຽນ ເດັກນ້ອຍ ໃຫຍ່ ໃໝ່ ຍ້ອນຫຍັງ ແນວໃດ ຫຼັງຈາກ ກ່ອນ ເມືອງ ຫຼາຍ ທັງໝົດ",
    "lt": "ir ne tai kad buvo žmonės namas vanduo šiandien rytoj darbas mokykla vaikai didelis naujas kodėl kaip po prieš miestas labai visi bet su",
    "lv": "un nav tas ka bija cilvēki māja ūdens šodien rīt darbs skola bērni liels jauns kāpēc kā pēc pirms pilsēta ļoti visi bet ar",
    "mg": "ary tsy izany dia olona trano rano androany rahampitso asa sekoly ankizy lehibe vaovao nahoana ahoana aorian' taloha tanàna tena rehetra fa amin'ny",
    "mk": "и не на дека ова беше луѓето куќа вода денес утре работа училиште деца голем нов зошто како потоа пред град многу сите кои",
    "ml": "ഒപ്പം അല്ല ഇത് എന്ന് ആളുകൾ വീട് വെള്ളം ഇന്ന് നാളെ ജോലി വിദ്യാലയം കുട്ടികൾ വലിയ പുതിയ എന്തുകൊണ്ട് എങ്ങനെ ശേഷം മുമ്പ് നഗരം വളരെ എല്ലാവരും",
    "mn": "ба биш энэ гэж байсан хүмүүс гэр ус өнөөдөр маргааш ажил сургууль хүүхдүүд том шинэ яагаад хэрхэн дараа өмнө хот маш бүгд харин",
    "mr": "आणि नाही हे आहे होते लोक घर पाणी आज उद्या काम शाळा मुले मोठे नवीन का कसे नंतर आधी शहर खूप सर्व पण त्यांच्या",
    "ms": "dan tidak itu yang ialah orang rumah air hari ini esok kerja sekolah kanak-kanak besar baharu mengapa bagaimana selepas sebelum bandar sangat semua tetapi dengan",
    "my": "နှင့် မဟုတ် ဒီ သည် လူများ အိမ် ရေ ယနေ့ မနက်ဖြန် အလုပ် ကျောင်း ကလေးများ ကြီးသော အသစ် ဘာကြောင့် ဘယ်လို ပြီးနောက် မတိုင်မီ မြို့ အလွန်",
    "ne": "र छैन यो छ थियो मानिसहरू घर पानी आज भोलि काम विद्यालय बच्चाहरू ठूलो नयाँ किन कसरी पछि पहिले शहर धेरै सबै तर उनीहरूको",
    "nl": "en niet het dat was mensen huis water vandaag morgen werk school kinderen groot nieuw waarom hoe na voor stad zeer allemaal maar met hun",
    "no": "og ikke det som var mennesker huset vann i dag i morgen arbeid skole barn stor ny hvorfor hvordan etter før byen veldig alle men ble",
    "om": "fi miti kun kan ture namoonni mana bishaan har'a bor hojii mana barumsaa ijoollee guddaa haaraa maaliif akkamitti booda dura magaalaa baay'ee hunda garuu waliin",
    "or": "ଏବଂ ନୁହେଁ ଏହା ଅଟେ ଲୋକମାନେ ଘର ପାଣି ଆଜି ଆସନ୍ତାକାଲି କାମ ବିଦ୍ୟାଳୟ ପିଲାମାନେ ବଡ଼ ନୂଆ କାହିଁକି କିପରି ପରେ ପୂର୍ବରୁ ସହର ବହୁତ ସମସ୍ତେ",
    "pa": "ਅਤੇ ਨਹੀਂ ਇਹ ਹੈ ਸੀ ਲੋਕ ਘਰ ਪਾਣੀ ਅੱਜ ਕੱਲ੍ਹ ਕੰਮ ਸਕੂਲ ਬੱਚੇ ਵੱਡਾ ਨਵਾਂ ਕਿਉਂ ਕਿਵੇਂ ਬਾਅਦ ਪਹਿਲਾਂ ਸ਼ਹਿਰ ਬਹੁਤ ਸਾਰੇ ਪਰ",
    "pl": "i nie to że był ludzie dom woda dzisiaj jutro praca szkoła dzieci duży nowy dlaczego jak potem przed miasto bardzo wszyscy ale które",
    "ps": "او نه دا چې وو خلک کور اوبه نن سبا کار ښوونځی ماشومان لوی نوی ولې څنګه وروسته مخکې ښار ډېر ټول خو",
    "pt": "e não o que era pessoas casa água hoje amanhã trabalho escola crianças grande novo porque como depois antes cidade muito todos mas com uma são",
    "ro": "și nu este că era oameni casă apă astăzi mâine muncă școală copii mare nou de ce cum după înainte oraș foarte toți dar cu",
    "ru": "и не на что это был люди дом вода сегодня завтра работа школа дети большой новый почему как после перед город очень все которые",
    "sa": "च न इदम् अस्ति आसीत् जनाः गृहम् जलम् अद्य श्वः कार्यम् विद्यालयः बालकाः महान् नवम् किमर्थम् कथम् पश्चात् पूर्वम् नगरम् अतीव सर्वे किन्तु",
    "sd": "۽ نه هي آهي هو ماڻهو گهر پاڻي اڄ سڀاڻي ڪم اسڪول ٻار وڏو نئون ڇو ڪيئن پوءِ اڳ شهر تمام سڀ پر",
    "si": "සහ නැත මෙය බව විය මිනිසුන් නිවස ජලය අද හෙට වැඩ පාසල දරුවන් විශාල නව ඇයි කෙසේද පසු පෙර නගරය ඉතා සියලු නමුත්",
    "sk": "a nie že ktoré bol ľudia dom voda dnes zajtra práca škola deti veľký nový prečo ako potom pred mesto veľmi všetci sú keď",
    "sl": "in ne da je bil ljudje hiša voda danes jutri delo šola otroci velik nov zakaj kako potem pred mesto zelo vsi ki tudi",
    "so": "iyo ma kan waa ahaa dadka guriga biyaha maanta berri shaqada dugsiga carruurta weyn cusub waayo sidee kadib ka hor magaalada aad dhammaan laakiin",
    "sq": "dhe nuk është që ishte njerëzit shtëpi ujë sot nesër punë shkollë fëmijët madh ri pse si pas para qytet shumë të gjithë por me",
    "sr": "и не на што је био људи кућа вода данас сутра посао школа деца велики нови зашто како после пре град врло сви који",
    "su": "jeung henteu eta anu nyaéta jalma imah cai poé ieu isukan gawé sakola barudak gedé anyar naha kumaha sanggeus saméméh kota pisan kabéh tapi",
    "sv": "och inte det som var människor huset vatten i dag i morgon arbete skola barn stor ny varför hur efter före staden mycket alla men blev",
    "sw": "na si hii ambayo ilikuwa watu nyumba maji leo kesho kazi shule watoto kubwa mpya kwa nini jinsi baada kabla mji sana wote lakini",
    "ta": "மற்றும் இல்லை இது என்று மக்கள் வீடு தண்ணீர் இன்று நாளை வேலை பள்ளி குழந்தைகள் பெரிய புதிய ஏன் எப்படி பிறகு முன் நகரம் மிகவும் எல்லோரும் ஆனால்",
    "te": "మరియు కాదు ఇది అని ప్రజలు ఇల్లు నీరు ఈరోజు రేపు పని పాఠశాల పిల్లలు పెద్ద కొత్త ఎందుకు ఎలా తర్వాత ముందు నగరం చాలా అందరూ కానీ",
    "th": "และ ไม่ นี้ ที่ คน บ้าน น้ำ วันนี้ พรุ่งนี้ งาน โรงเรียน เด็ก ใหญ่ ใหม่ ทำไม อย่างไร หลังจาก ก่อน เมือง มาก ทุกคน แต่",
    "tl": "at hindi ito na ang mga tao bahay tubig ngayon bukas trabaho paaralan bata malaki bago bakit paano pagkatapos bago lungsod napaka lahat ngunit",
    "tr": "ve değil bu için olan insanlar ev su bugün yarın iş okul çocuklar büyük yeni neden nasıl sonra önce şehir çok herkes ama ile",
    "ug": "ۋە ئەمەس بۇ ئۈچۈن بولغان كىشىلەر ئۆي سۇ بۈگۈن ئەتە ئىش مەكتەپ بالىلار چوڭ يېڭى نېمىشقا قانداق كېيىن بۇرۇن شەھەر ناھايىتى ھەممە",
    "uk": "і не на що це був люди будинок вода сьогодні завтра робота школа діти великий новий чому як після перед місто дуже всі які",
    "ur": "اور نہیں یہ ہے تھا لوگ گھر پانی آج کل کام سکول بچے بڑا نیا کیوں کیسے بعد پہلے شہر بہت سب لیکن ان کے",
    "uz": "va emas bu uchun bo'lgan odamlar uy suv bugun ertaga ish maktab bolalar katta yangi nega qanday keyin oldin shahar juda hamma lekin bilan",
    "vi": "và không này là đã người nhà nước hôm nay ngày mai công việc trường học trẻ em lớn mới tại sao như thế nào sau trước thành phố rất tất cả nhưng",
    "xh": "kunye hayi oku ukuba yayi abantu indlu amanzi namhlanje ngomso umsebenzi isikolo abantwana enkulu entsha kutheni njani emva phambi isixeko kakhulu bonke kodwa",
    "yi": "און נישט דאס וואס איז געווען מענטשן הויז וואסער היינט מארגן ארבעט שולע קינדער גרויס ניי פארוואס ווי נאך פאר שטאט זייער אלע אבער",
    "zh": "我们 不是 这个 的 人们 房子 水 今天 明天 工作 学校 孩子 很大 新的 为什么 怎么 以后 以前 城市 非常 所有 但是 他们",
}
CODES = {language.name: code for code, language in known_languages().items()}
ADJECTIVES = [
    "urgent",
    "seasonal",
    "remote",
    "informal",
    "disputed",
    "partial",
    "recent",
    "hidden",
    "shared",
    "costly",
    "minor",
    "regional",
]
KINDS = [
    "questions",
    "complaints",
    "reports",
    "notices",
    "recipes",
    "contracts",
    "letters",
    "reviews",
    "plans",
    "records",
    "offers",
    "diaries",
]
LABELS = ("Zirkonium", "Kaleidoscope", "Quartzite", "Obsidian", "Xylophone", "Jubilee", "Walnut", "Mercury")


def write_e5(user: str) -> str:
    """Return an obedient answer, as JSON, to the user message of any prompt of the recipe."""
    chance = random.Random(user)
    asked = re.search(r"^Think of (\d+) ", user)
    if asked:
        return json.dumps({"tasks": [_task(user, chance) for _ in range(int(asked.group(1)))]})
    if '"S1"' in user:
        return _write_three(user, chance)
    language = CODES[re.search(r"written in ([^,;]+)[,;]", user).group(1)]
    if '"user_query"' in user:
        count = int(re.search(r"at least (\d+) words and stands", user).group(1))
        texts = {
            "user_query": write_text(language, _query_length(user), chance),
            "positive_document": write_text(language, count, chance),
            "hard_negative_document": write_text(language, count, chance),
        }
    elif '"input_text"' in user:
        right, wrong = chance.sample(LABELS, 2)
        found = re.search(r"input_text has (less than|at least) (\d+) words", user)
        count = int(found.group(2)) - 3 if found.group(1) == "less than" else int(found.group(2))
        texts = {"input_text": write_text(language, count, chance), "label": right, "misleading_label": wrong}
    else:
        count = 310 if "at least 300 words" in user else 6
        texts = {key: write_text(language, count, chance) for key in ("input", "positive_document")}
    return json.dumps(texts, ensure_ascii=False)


def _write_three(user: str, chance: random.Random) -> str:
    pair = re.search(r"^Write a (\w+) in (.+) and two in (.+), on this topic", user)
    unit = pair.group(1) if pair else re.search(r"each of them a (\w+),", user).group(1)
    name = re.search(r"written in ([^,;]+)[,;]", user)
    codes = (CODES[pair.group(2)], CODES[pair.group(3)]) if pair else (CODES[name.group(1)],) * 2
    count = {"phrase": 4, "sentence": 11, "passage": 50}[unit]
    first, second = codes
    three = {"S1": first, "S2": second, "S3": second}
    return json.dumps({key: write_text(code, count, chance) for key, code in three.items()}, ensure_ascii=False)


def _query_length(user: str) -> int:
    return {"less than 5 words": 3, "5 to 15 words": 9, "at least 10 words": 13}[
        next(found for found in ("less than 5 words", "5 to 15 words", "at least 10 words") if found in user)
    ]


def _task(user: str, chance: random.Random) -> str:
    topic = re.search(r"^Start from this topic: (.+)$", user, re.M).group(1)[:80]
    number = chance.randrange(10**6)
    return f"Look through {chance.choice(ADJECTIVES)} {chance.choice(KINDS)} on {topic}, series {number}."


def write_text(language: str, count: int, chance: random.Random) -> str:
    """Return a text of `count` words of a language, one of them a number that no other text has."""
    between = "" if known_languages()[language].letters else " "
    words = WORDS[language].split()
    wanted = count if between else -(-count * known_languages()[language].letters // 3)
    texts = [chance.choice(words) for _ in range(max(wanted - 1, 2))]
    return between.join([*texts[: len(texts) // 2], f" {chance.randrange(10**9)} ".strip(), *texts[len(texts) // 2 :]])
