// Prints what an app that is too old is told. tests/test_clients.py runs it.
//   node outdated.ts URL QUEUE TOKEN
import { Trivia, TriviaError } from "../../clients/trivia.ts";

const [url, queue, token] = process.argv.slice(2) as [string, string, string];
const trivia = new Trivia(url, { token, app: { name: "shop", version: "1.9" } });
const error = (await trivia.readMe().catch((error) => error)) as TriviaError;
trivia.play(queue as never).on("link", (link) => {
  if (link.state !== "closed") return;
  console.log([error.code, error.problem.store, link.reason, link.detail].join(" "));
});
