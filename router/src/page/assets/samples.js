// Prompts to try: a short one, and long ones in which a fact is hidden far from the question about it, so that a cache
// that was coded badly would show.

const NAMES = ["Ada Novak", "Ben Hansen", "Clara Dubois", "David Keller", "Elena Castro", "Felix Young", "Grace Tanaka",
  "Hugo Brandt", "Ines Rossi", "Jonas Weber", "Kira Ivanov", "Mona Abbott", "Nils Olsen", "Rosa Lopez", "Vera Ziegler"];
const THINGS = ["amber lantern", "crooked bridge", "dusty engine", "faded basket", "hollow barrel", "jagged mirror",
  "narrow ladder", "pale envelope", "rusty anchor", "silver needle", "velvet jacket", "golden candle", "heavy wagon"];
const VERBS = ["moved", "carried", "painted", "repaired", "counted", "inspected", "borrowed", "cleaned", "measured"];
const PLACES = ["north tower", "east wing", "boat house", "stone cellar", "front office", "market hall", "old mill"];
const TIMES = ["before noon", "after the storm", "on Monday", "at sunrise", "last winter", "two days later"];

const SENTENCES = { long: 80, longest: 160 };
/** Filler behind the last fact. */
const TAIL = 18;

const one = (list) => list[Math.floor(Math.random() * list.length)];
const code = () => String(Math.floor(1e5 + Math.random() * 9e5));

function filler() {
  return one([
    () => `${one(NAMES)} ${one(VERBS)} the ${one(THINGS)} ${one(TIMES)}.`,
    () => `The ${one(THINGS)} in the ${one(PLACES)} was ${one(VERBS)} ${one(TIMES)}.`,
    () => `A ${one(THINGS)} stood beside the ${one(THINGS)} ${one(TIMES)}.`,
  ])();
}

/** A prompt of a size, other every time, and the answer that is in it. */
export function sample(size, kind) {
  if (size === "short") return { prompt: kind === "chat" ? "What does a linker do?" : "The linker reports", answer: null };
  const sentences = Array.from({ length: SENTENCES[size] }, filler);
  const people = [...NAMES].sort(() => Math.random() - 0.5).slice(0, 4);
  const known = people.map((name) => ({ name, code: code() }));
  for (const fact of known) {
    const place = Math.floor(Math.random() * (sentences.length - TAIL));
    sentences.splice(place, 0, `The access code for ${fact.name} is ${fact.code}.`);
  }
  const asked = one(known);
  const question = `What is the access code for ${asked.name}?`;
  const ending = kind === "chat" ? `\n\n${question}` : `\n\nQuestion: ${question}\nAnswer:`;
  return { prompt: sentences.join(" ") + ending, answer: asked.code };
}
