// Plays one game and prints its end, for each script in turn. tests/test_clients.py runs it.
//   java PlayKt URL QUEUE ANSWERS SCRIPT...     ANSWERS: lines of "QUESTION<tab>RIGHT ANSWER"
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

fun main(args: Array<String>) {
    val right = File(args[2]).readLines().associate { it.substringBefore('\t') to it.substringAfter('\t') }
    val pool = Executors.newFixedThreadPool(6)
    val games = args.drop(3).map { script -> pool.submit<String> { playOnce(args[0], args[1], right, script) } }
    games.forEach { println(it.get()) }
    pool.shutdown()
}
