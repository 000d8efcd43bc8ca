// Plays one game and prints its end, for each script in turn. tests/test_clients.py runs it.
//   java PlayKt URL QUEUE ANSWERS SCRIPT...     ANSWERS: lines of "QUESTION<tab>RIGHT ANSWER"
//   java PlayKt URL QUEUE TOKEN                 prints what an app that is too old is told
package trivia

import java.io.File
import java.util.concurrent.CompletableFuture
import java.util.concurrent.Executors
import java.util.concurrent.TimeUnit

fun playOnce(url: String, queue: String, right: Map<String, String>, script: String): String {
    val trivia = Trivia(url, timeoutMs = 60_000)
    val name = "kt" + java.util.UUID.randomUUID().toString().take(12).replace("-", "")
    trivia.register(NewUser(username = name, email = "$name@example.org", password = "correct horse"))
    val links = ArrayList<String>()
    val over = CompletableFuture<EndMessage>()
    val play = trivia.play(queue, JoinFields(script = script))
    play.onLink { link -> links.add(link.toString()) }
    play.onMessage { message -> if (message is EndMessage) over.complete(message) }
    play.onChange { game ->
        val question = game.question
        if (game.phase == Phase.QUESTION && game.choice == null && question != null) {
            play.answer(question.choices.indexOf(right[question.text]))
        }
    }
    val end = over.get(110, TimeUnit.SECONDS)
    play.close()
    val score = end.ranking.first { it.player == name }.score
    return """{"script": "$script", "score": $score, "reason": "${end.reason}", "links": ${links.count { it.contains("Online") }}}"""
}

fun outdated(url: String, queue: String, token: String): String {
    val trivia = Trivia(url, token, app = App("shop", "1.9"))
    val error = try { trivia.readMe(); null } catch (error: TriviaException) { error }
    val over = CompletableFuture<Link.Closed>()
    trivia.play(queue).onLink { link -> if (link is Link.Closed) over.complete(link) }
    val link = over.get(30, TimeUnit.SECONDS)
    return "${error?.code} ${error?.problem?.store} ${link.reason.name.lowercase()} ${link.detail}"
}

fun main(args: Array<String>) {
    if (args.size == 3) return println(outdated(args[0], args[1], args[2]))
    val right = File(args[2]).readLines().associate { it.substringBefore('\t') to it.substringAfter('\t') }
    val pool = Executors.newCachedThreadPool()
    val games = args.drop(3).map { script -> pool.submit<String> { playOnce(args[0], args[1], right, script) } }
    games.forEach { println(it.get()) }
    pool.shutdown()
}
