// Plays one game and prints its end, for each script; all at the same time. tests/test_clients.py runs it.
//   node play.ts URL QUEUE ANSWERS.json SCRIPT...
import { readFileSync } from "node:fs";
import { Trivia } from "../../clients/trivia.ts";

const [url, queue, file, ...scripts] = process.argv.slice(2) as [string, string, string, ...string[]];
const right: Record<string, string> = JSON.parse(readFileSync(file, "utf-8"));

async function playOnce(script: string): Promise<void> {
  const name = `ts${Math.random().toString(36).slice(2, 12)}`;
  const trivia = new Trivia(url, { timeoutMs: 60_000 });
  await trivia.register({ username: name, email: `${name}@example.org`, password: "correct horse" });

  const fields = script ? { script } : {};
  const play = trivia.play(queue as never, fields);
  let links = 0;
  play.on("link", (link) => (links += Number(link.state === "online")));
  play.on("error", (error) => console.error(error));
  play.on("change", (game) => {
    const question = game.question;
    if (game.phase !== "question" || game.choice !== null || question === null) return;
    play.answer(question.choices.indexOf(right[question.text] ?? ""));
  });
  play.on("end", (end) => {
    const mine = end.ranking.find((row) => row.player === name);
    console.log(JSON.stringify({ script, score: mine?.score, reason: end.reason, links }));
    play.close();
  });
}

await Promise.all(scripts.map(playOnce));
