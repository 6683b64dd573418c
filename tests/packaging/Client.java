import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** Calls a URL with both clients of the JDK, as an app would: nothing is set here. */
public class Client {
  public static void main(String[] arguments) throws Exception {
    URI uri = URI.create(arguments[0]);
    HttpURLConnection connection = (HttpURLConnection) uri.toURL().openConnection();
    System.out.println("HttpsURLConnection " + connection.getResponseCode() + " "
        + new String(connection.getInputStream().readAllBytes()));
    HttpRequest request = HttpRequest.newBuilder(uri).build();
    HttpResponse<String> response = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
    System.out.println("HttpClient " + response.statusCode() + " " + response.body());
  }
}
